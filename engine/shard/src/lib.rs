//! Polled reactor, rings, mesh and timers.
