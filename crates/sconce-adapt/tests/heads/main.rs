//! The heads as their users meet them, on small random models and on the repository's own dual encoder.

mod checkpoints;
mod emoji;
mod frozen;
mod gradients;
mod prompts;
mod support;
mod types;
