//! gRPC front end.
