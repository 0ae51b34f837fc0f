//! A Chinese dual encoder trained on the emoji data: contrasted globally or token by token, from scratch or beside the locked
//! image tower of the English one.

pub mod data;
pub mod model;
pub mod train;

use serde::Serialize;

/// What is contrasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// A picture with a text: CLIP's comparison.
    Infonce,
    /// The tokens of a picture with those of a text: FILIP's late interaction.
    Filip,
}

/// Where the image tower is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Tower {
    /// A residual network that starts from random weights.
    Scratch,
    /// The tower of the small English model, which stays as it is (LiT).
    Locked,
}
