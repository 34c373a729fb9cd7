//! The three composition roots: supervisor, server, custodian.
