//! Checkpoints of heads: the official codes' and this library's.

use std::path::Path;

use sconce_nn::{Checkpoint, LoadOptions, LoadReport, ParamStore};

use crate::{Error, Result};

/// Options for loading official checkpoints of learned prompts: the embeddings of the class names that they were trained with
/// (`token_prefix`, `token_suffix`) are not loaded, those of the present classes stay.
#[must_use]
pub fn load_options() -> LoadOptions {
    LoadOptions::default().ignore("token_prefix").ignore("token_suffix")
}

/// Loads the parameters of a head from a checkpoint: one that [`ParamStore::save`] wrote, or one of the official codes of CoOp,
/// CoCoOp and CLIP-Adapter, `prompt_learner/model.pth.tar-50`, whose weights are under `state_dict` beside the epoch and the
/// states of optimiser and schedule.
///
/// # Errors
/// [`Error::OtherClasses`] for a class-specific context of another number of classes; otherwise as [`ParamStore::load`], for
/// any parameter that is missing, left over or of another shape. Nothing is changed then.
pub fn load_head(store: &ParamStore, path: impl AsRef<Path>) -> Result<LoadReport> {
    let checkpoint = Checkpoint::open(path)?.select_first(&["state_dict"]).strip_prefix(&["module."])?;
    if let (Some(ctx), Ok(found)) = (store.get("ctx"), checkpoint.shape("ctx"))
        && let ([classes, rest @ ..], [found, others @ ..]) = (ctx.dims(), &found[..])
        && rest.len() == 2
        && rest == others
        && classes != found
    {
        return Err(Error::OtherClasses { found: *found, classes: *classes });
    }
    Ok(store.load(&checkpoint, &load_options())?)
}
