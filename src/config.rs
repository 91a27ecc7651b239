//! Settings: command line and environment.
