//! Token mixers for vision transformers, one trait for all.
