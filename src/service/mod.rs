//! The use cases: serve keys, start, rotate.
