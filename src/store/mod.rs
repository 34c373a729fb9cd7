//! The store: one crash-safe file.
