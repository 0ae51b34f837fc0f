//! The heads as their users meet them, on small random models.

mod checkpoints;
mod frozen;
mod gradients;
mod prompts;
mod support;
mod types;
