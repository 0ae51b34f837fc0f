//! Running statistics after a step in training mode.

use candle_core::{DType, Device, ModuleT};
use candle_nn::VarBuilder;
use sconce::nn::{Checkpoint, KeyMap, LoadOptions, ParamStore, Source};
use sconce_tests::golden::{Case, OUTPUT, Result, Tensors, compare};

use super::model::{Keys, train_mode};

/// Holds every buffer of a model after one forward pass against `after.safetensors`, where the case has it, and wants
/// all of both. `keys` maps the model's names to the file's.
pub(crate) fn after<M: ModuleT>(
    case: &Case,
    build: &dyn Fn(VarBuilder) -> candle_core::Result<M>,
    keys: Option<Keys>,
) -> Result<()> {
    let path = case.path("after.safetensors");
    if !path.is_file() {
        return Ok(());
    }
    if !train_mode(&case.json()?)? {
        return Err("after.safetensors belongs to training mode".into());
    }
    let (io, after) = (case.tensors()?, Tensors::open(&path)?);
    let file = Checkpoint::open(case.path("weights.safetensors"))?;
    let file = keys.clone().map_or(file.clone(), |keys| file.with_map(keys));
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let model = build(store.vb())?;
    store.load(&file, &LoadOptions::default())?;
    model.forward_t(io.get("input")?, true)?;
    let mut left: Vec<_> = after.iter().map(|(name, _)| name).filter(|n| !n.ends_with("num_batches_tracked")).collect();
    for buffer in store.buffers() {
        let name = match &keys {
            None => buffer.name.to_string(),
            Some(keys) => match keys.source(&buffer.name) {
                Source::Tensor(name) => name,
                other => return Err(format!("{}: the map says {other:?}", buffer.name).into()),
            },
        };
        let name = format!("after.{name}");
        compare(&name, buffer.var.as_tensor(), after.get(&name)?, OUTPUT)?;
        left.retain(|other| *other != name);
    }
    match left[..] {
        [] => Ok(()),
        _ => Err(format!("the model keeps no {left:?}").into()),
    }
}
