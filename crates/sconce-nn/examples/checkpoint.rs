//! Lists the tensors of a checkpoint: `cargo run -p sconce-nn --example checkpoint -- FILE [KEY]`.
//!
//! Reads every tensor once, so that a damaged file shows itself. `KEY` selects a nested dictionary.

use candle_core::{DType, Device};
use sconce_nn::Checkpoint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: checkpoint FILE [KEY]")?;
    let mut checkpoint = Checkpoint::open(&path)?;
    if let Some(key) = arguments.next() {
        checkpoint = checkpoint.select(&key)?;
    }
    for (key, value) in checkpoint.metadata().iter().take(20) {
        println!("# {key} = {}", value.chars().take(100).collect::<String>());
    }
    let mut elements = 0;
    for name in checkpoint.names() {
        let tensor = checkpoint.tensor(name, &Device::Cpu)?;
        elements += tensor.elem_count();
        let mean = match tensor.elem_count() {
            0 => f64::NAN,
            _ => tensor.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?,
        };
        println!("{name} {:?} {:?} mean {mean:.6}", checkpoint.dtype(name)?, tensor.dims());
    }
    println!("{} tensors, {elements} elements", checkpoint.len());
    Ok(())
}
