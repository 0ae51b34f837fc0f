//! What a learned context seems to say.

use candle_core::{DType, Tensor};
use sconce_clip::Tokenize;
use sconce_clip::model::TextTransformer;
use sconce_ops::{argsort, matmul};

use crate::{Error, Result};

/// The tokens whose embeddings are nearest to each learned one, by Euclidean distance, the nearest first, as CoOp's paper reads
/// its contexts (`arXiv:2109.01134`, table 4). A token that ends a word ends with a space.
///
/// For a class-specific context give that of one class. The paper warns that the words need not mean anything.
///
/// # Shapes
/// - `ctx` `(n_ctx, C)`; output `n_ctx` lists of `k` tokens, or of the whole vocabulary when it is smaller
///
/// # Errors
/// When the context has another shape, or the tokenizer does not know a token of the tower.
pub fn nearest_words(
    ctx: &Tensor,
    text: &TextTransformer,
    tokenizer: &dyn Tokenize,
    k: usize,
) -> Result<Vec<Vec<(String, f32)>>> {
    let (vocabulary, width) = text.token_embedding.dims2()?;
    if ctx.rank() != 2 || ctx.dim(1)? != width {
        let expected = format!("(n_ctx, {width})");
        return Err(Error::Shape { what: "context", expected, found: ctx.dims().to_vec() });
    }
    let (ctx, table) = (ctx.detach().to_dtype(DType::F32)?, text.token_embedding.detach().to_dtype(DType::F32)?);
    // |a - b|^2 - |a|^2 cancels where vectors nearly agree: it makes a short list, the distances of which are then exact.
    let products = matmul(&ctx, &table.t()?)?; // (n_ctx, V)
    let order = argsort(&(products * -2.0)?.broadcast_add(&table.sqr()?.sum(1)?.unsqueeze(0)?)?, false)?;
    let (k, listed) = (k.min(vocabulary), (2 * k + 16).min(vocabulary));
    let mut nearest = Vec::with_capacity(ctx.dim(0)?);
    for (row, ids) in order.narrow(1, 0, listed)?.to_vec2::<u32>()?.into_iter().enumerate() {
        let rows = table.index_select(&Tensor::new(ids.as_slice(), table.device())?, 0)?; // (listed, C)
        let distances = rows.broadcast_sub(&ctx.get(row)?)?.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
        let mut found: Vec<(u32, f32)> = ids.into_iter().zip(distances).collect();
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        let word = |(id, distance): &(u32, f32)| Ok((tokenizer.decode(&[*id])?, *distance));
        nearest.push(found[..k].iter().map(word).collect::<Result<Vec<_>>>()?);
    }
    Ok(nearest)
}
