//! BOAT: Swin and CSWin with attention among similar tokens beside that among neighbours.

mod config;
mod model;
mod records;

pub use config::{Config, HostConfig};
pub use model::{BoatTransformer, Host};
pub(crate) use records::models;
