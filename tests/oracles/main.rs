//! The clients of IBM Key Protect and AWS KMS against what their vendors wrote: IBM's own client, botocore's signatures.
//!
//! What every upstream must do is in tests/upstream; this is what only one of them does.
#![cfg(feature = "cloud")]

mod aws;
mod ibm;
mod rig;
