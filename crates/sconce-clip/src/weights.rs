//! Checkpoints of the three libraries under one set of names, OpenAI's, and what loading them needs.

use crate::{Error, Result};
use candle_core::Tensor;
use sconce_nn::{Checkpoint, KeyMap, LoadOptions, Source};
use sconce_ops::{ResizeMode, ResizeOptions, resize};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Whose names a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenAI's CLIP and open_clip's `CLIP`.
    Openai,
    /// open_clip's `CustomTextCLIP`: the text tower below `text.`.
    CustomText,
    /// Hugging Face's `CLIPModel`.
    HuggingFace,
}

impl Format {
    /// Tells the format from the names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when they are of no known format.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let has = |name: &str| checkpoint.names().any(|n| n == name);
        if has("text_model.embeddings.token_embedding.weight") {
            Ok(Self::HuggingFace)
        } else if has("text.token_embedding.weight") {
            Ok(Self::CustomText)
        } else if has("token_embedding.weight") && has("visual.conv1.weight") {
            Ok(Self::Openai)
        } else {
            let some: Vec<&str> = checkpoint.names().take(5).collect();
            Err(Error::Checkpoint(format!("these are not the names of a CLIP model: {}, ...", some.join(", "))))
        }
    }
}

impl KeyMap for Format {
    fn source(&self, name: &str) -> Source {
        match self {
            Self::Openai => Source::Tensor(name.to_owned()),
            Self::CustomText => match name.starts_with("visual.") || name == "logit_scale" {
                true => Source::Tensor(name.to_owned()),
                false => Source::Tensor(format!("text.{name}")),
            },
            Self::HuggingFace => hugging_face(name),
        }
    }
}

/// Hugging Face's name for one of OpenAI's.
fn hugging_face(name: &str) -> Source {
    let tensor = |name: &str| Source::Tensor(name.to_owned());
    match name {
        "logit_scale" => tensor("logit_scale"),
        "visual.class_embedding" => tensor("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding" => tensor("vision_model.embeddings.position_embedding.weight"),
        "visual.conv1.weight" => tensor("vision_model.embeddings.patch_embedding.weight"),
        "visual.proj" => Source::Transposed("visual_projection.weight".into()),
        "token_embedding.weight" => tensor("text_model.embeddings.token_embedding.weight"),
        "positional_embedding" => tensor("text_model.embeddings.position_embedding.weight"),
        "text_projection" => Source::Transposed("text_projection.weight".into()),
        _ => {
            let (tower, rest) = match name.strip_prefix("visual.") {
                Some(rest) => ("vision_model", rest),
                None => ("text_model", name),
            };
            let (module, parameter) = rest.rsplit_once('.').unwrap_or((rest, ""));
            match module {
                // The published name is misspelt.
                "ln_pre" => Source::Tensor(format!("{tower}.pre_layrnorm.{parameter}")),
                "ln_post" => Source::Tensor(format!("{tower}.post_layernorm.{parameter}")),
                "ln_final" => Source::Tensor(format!("{tower}.final_layer_norm.{parameter}")),
                _ => rest.strip_prefix("transformer.resblocks.").map_or(Source::Missing, |rest| block(tower, rest)),
            }
        }
    }
}

/// A tensor of a block: `rest` is `3.attn.in_proj_weight` and the like.
fn block(tower: &str, rest: &str) -> Source {
    let Some((number, rest)) = rest.split_once('.') else { return Source::Missing };
    let layer = format!("{tower}.encoder.layers.{number}");
    if let Some(parameter) = rest.strip_prefix("attn.in_proj_") {
        let names = ["q", "k", "v"].map(|which| format!("{layer}.self_attn.{which}_proj.{parameter}"));
        return Source::Concat { names: names.into(), dim: 0 };
    }
    let renamed = [
        ("attn.out_proj.", "self_attn.out_proj."),
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let found = renamed.iter().find_map(|(ours, theirs)| Some(format!("{layer}.{theirs}{}", rest.strip_prefix(ours)?)));
    found.map_or(Source::Missing, Source::Tensor)
}

/// A checkpoint that answers to OpenAI's names: unwraps what training scripts put around it (`state_dict`, `module.`), tells the
/// format and translates.
///
/// # Errors
/// [`Error::Checkpoint`] when the tensors are not those of a CLIP model.
pub fn openai_names(checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let (plain, format) = unwrap(checkpoint)?;
    Ok(plain.with_map(format))
}

fn unwrap(checkpoint: &Checkpoint) -> Result<(Checkpoint, Format)> {
    let known = |checkpoint: Checkpoint| -> Result<(Checkpoint, Format)> {
        let plain = checkpoint.strip_prefix(&["module."])?;
        let format = Format::of(&plain)?;
        Ok((plain, format))
    };
    known(checkpoint.clone()).or_else(|error| known(checkpoint.select_first(&Checkpoint::WRAPPERS)).map_err(|_| error))
}

/// How CLIP checkpoints are loaded: strictly, but for scalars that OpenAI's archives carry, and with position embeddings
/// resampled where the model has another image size or context.
pub fn load_options() -> LoadOptions {
    let ignored = ["input_resolution", "context_length", "vocab_size", "*attn_mask"];
    ignored.into_iter().fold(LoadOptions::default(), LoadOptions::ignore).resize(resize_positions)
}

fn resize_positions(name: &str, tensor: &Tensor, wanted: &[usize]) -> candle_core::Result<Option<Tensor>> {
    let [tokens, width] = *wanted else { return Ok(None) };
    if tensor.rank() != 2 || tensor.dim(1)? != width {
        return Ok(None);
    }
    match name {
        "visual.positional_embedding" | "visual.attnpool.positional_embedding" => {
            let side = tokens.saturating_sub(1).isqrt();
            if side * side + 1 == tokens { resize_grid_positions(tensor, side).map(Some) } else { Ok(None) }
        }
        "positional_embedding" => resize_text_positions(tensor, tokens).map(Some),
        _ => Ok(None),
    }
}

/// Position embeddings of a class token and a square grid, for a grid of another side: antialiased bicubic, as open_clip does
/// it. The class token keeps its own.
///
/// # Shapes
/// `(1 + g^2, C)` to `(1 + side^2, C)`
///
/// # Errors
/// When the tokens after the first are no square grid.
pub fn resize_grid_positions(positions: &Tensor, side: usize) -> candle_core::Result<Tensor> {
    let (tokens, width) = positions.dims2()?;
    let old = tokens.saturating_sub(1).isqrt();
    if old == 0 || old * old + 1 != tokens {
        candle_core::bail!("{tokens} position embeddings are not a square grid and one more");
    }
    let grid = positions.narrow(0, 1, tokens - 1)?.reshape((1, old, old, width))?.permute((0, 3, 1, 2))?; // (1, C, g, g)
    let grid = grid.to_dtype(candle_core::DType::F32)?;
    let options = ResizeOptions::size(side, side).mode(ResizeMode::Bicubic).antialias(true);
    let grid = resize(&grid, &options)?.flatten_from(2)?.squeeze(0)?.t()?; // (side^2, C)
    Tensor::cat(&[positions.narrow(0, 0, 1)?, grid.to_dtype(positions.dtype())?], 0)
}

/// Position embeddings of a text, for a context of another length: linear, as open_clip does it.
fn resize_text_positions(positions: &Tensor, context: usize) -> candle_core::Result<Tensor> {
    let row = positions.t()?.unsqueeze(0)?.unsqueeze(2)?.to_dtype(candle_core::DType::F32)?; // (1, C, 1, L)
    let row = resize(&row, &ResizeOptions::size(1, context))?;
    row.squeeze(2)?.squeeze(0)?.t()?.contiguous()?.to_dtype(positions.dtype())
}

/// A checkpoint that remembers what it was asked for, so that leftovers can be told.
pub(crate) struct Watched {
    plain: Checkpoint,
    map: Arc<dyn KeyMap>,
    used: Arc<Mutex<HashSet<String>>>,
}

impl Watched {
    pub(crate) fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let (plain, format) = unwrap(checkpoint)?;
        Ok(Self::of(plain, Arc::new(format)))
    }

    /// A checkpoint whose names `map` translates.
    pub(crate) fn of(plain: Checkpoint, map: Arc<dyn KeyMap>) -> Self {
        Self { plain, map, used: Arc::default() }
    }

    /// The checkpoint under the model's names.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let (map, used) = (self.map.clone(), self.used.clone());
        self.plain.with_map(move |name: &str| {
            let source = map.source(name);
            used.lock().unwrap_or_else(PoisonError::into_inner).extend(source.names().into_iter().map(str::to_owned));
            source
        })
    }

    /// Refuses a checkpoint that holds tensors nobody asked for.
    pub(crate) fn check_leftovers(&self, options: &LoadOptions) -> Result<()> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let ignored = |name: &str| options.ignore.iter().any(|pattern| sconce_nn::matches(pattern, name));
        let left: Vec<&str> = self.plain.names().filter(|name| !used.contains(*name) && !ignored(name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let some = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        Err(Error::Checkpoint(format!("{} tensors are not part of the model: {some}, ...", left.len())))
    }
}
