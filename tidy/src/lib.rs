//! Repository rules, checked as a test.
