//! The text tower of CLIP: a causal transformer read at the end token (Radford et al. 2021, section 2.4).

use super::transformer::{BlockInit, Transformer};
use crate::config::TextConfig;
use candle_core::{DType, Result, Tensor, bail};
use sconce_nn::{Init, LayerNorm, Module, VarBuilder, init::param, layer_norm};
use sconce_ops::{Mask, matmul};

/// Token and position embeddings, causal blocks, a final norm, and a projection of the token at the end of the text.
#[derive(Clone, Debug)]
pub struct TextTransformer {
    /// `(V, C)`.
    pub token_embedding: Tensor,
    /// `(L, C)`.
    pub positional_embedding: Tensor,
    /// The blocks.
    pub transformer: Transformer,
    /// After the blocks.
    pub ln_final: LayerNorm,
    /// `(C, E)`.
    pub text_projection: Tensor,
    /// Sizes.
    pub config: TextConfig,
}

impl TextTransformer {
    /// A tower whose names start at `vb`: `token_embedding.weight`, `positional_embedding`, ...
    ///
    /// # Errors
    /// What `vb` cannot provide.
    pub fn new(config: &TextConfig, embed_dim: usize, vb: VarBuilder) -> Result<Self> {
        let (width, normal) = (config.transformer.width, |std: f64| Init::Normal { mean: 0.0, std });
        let projection = normal((width as f64).powf(-0.5));
        Ok(Self {
            token_embedding: param(&vb.pp("token_embedding"), (config.vocab_size, width), "weight", normal(0.02))?,
            positional_embedding: param(&vb, (config.context_length, width), "positional_embedding", normal(0.01))?,
            transformer: Transformer::new(&config.transformer, BlockInit::Scaled, vb.pp("transformer"))?,
            ln_final: layer_norm(width, config.transformer.eps, vb.pp("ln_final"))?,
            text_projection: param(&vb, (width, embed_dim), "text_projection", projection)?,
            config: config.clone(),
        })
    }

    /// The embeddings of tokens, without positions: what a learned prompt is spliced into.
    ///
    /// # Shapes
    /// ids `(B, L)`, any integer type, to `(B, L, C)`
    ///
    /// # Errors
    /// For an id beyond the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, length) = ids.dims2()?;
        let rows = ids.to_dtype(DType::U32)?.flatten_all()?;
        self.token_embedding.index_select(&rows, 0)?.reshape((batch, length, self.config.transformer.width))
    }

    /// Where each row ends: the first place of the end token, or of the largest id when the configuration names none.
    ///
    /// # Errors
    /// When ids are not integers of shape `(B, L)`, or a row lacks the end token.
    pub fn end_positions(&self, ids: &Tensor) -> Result<Vec<usize>> {
        let end_of = |row: &Vec<u32>| {
            let end = self.config.end_token.or_else(|| row.iter().max().copied());
            match row.iter().position(|id| Some(*id) == end) {
                Some(position) => Ok(position),
                None => bail!("a row of tokens lacks the end token {end:?}"),
            }
        };
        ids.to_dtype(DType::U32)?.to_vec2::<u32>()?.iter().map(end_of).collect()
    }

    /// Text features from token ids, not normalised.
    ///
    /// # Shapes
    /// ids `(B, L)`, any integer type, to `(B, E)`
    ///
    /// # Errors
    /// As [`Self::embed`] and [`Self::end_positions`].
    pub fn forward_ids(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        let ends = self.end_positions(ids)?;
        // The mask is causal: nothing after the last end is ever looked at, and most rows are short.
        let used = ends.iter().max().map_or(0, |last| last + 1);
        self.forward_embeddings(&self.embed(&ids.narrow(1, 0, used)?)?, &ends, train)
    }

    /// Text features from token embeddings (of [`Self::embed`], or learned), not normalised. `ends` is the place of the end
    /// token in each row. Positions are added here.
    ///
    /// # Shapes
    /// embeddings `(B, L, C)`, `L` at most the context, to `(B, E)`
    ///
    /// # Errors
    /// When there are more rows than ends or a place lies outside its row.
    pub fn forward_embeddings(&self, embeddings: &Tensor, ends: &[usize], train: bool) -> Result<Tensor> {
        let (batch, length, _) = embeddings.dims3()?;
        if ends.len() != batch || ends.iter().any(|end| *end >= length) {
            bail!("the ends {ends:?} are not places in {batch} rows of {length} tokens");
        }
        let used = ends.iter().max().map_or(0, |last| last + 1);
        let hidden = self.blocks(&embeddings.narrow(1, 0, used)?, train)?; // (B, used, C)
        let places: Vec<u32> = ends.iter().enumerate().map(|(row, end)| (row * used + end) as u32).collect();
        let places = Tensor::from_vec(places, batch, embeddings.device())?;
        let last = hidden.flatten_to(1)?.index_select(&places, 0)?; // (B, C)
        matmul(&self.ln_final.forward(&last)?, &self.text_projection)
    }

    /// All tokens after the final norm.
    ///
    /// # Shapes
    /// embeddings `(B, L, C)`, `L` at most the context, to `(B, L, C)`
    ///
    /// # Errors
    /// When the row is longer than the context.
    pub fn forward_features(&self, embeddings: &Tensor, train: bool) -> Result<Tensor> {
        self.ln_final.forward(&self.blocks(embeddings, train)?)
    }

    fn blocks(&self, embeddings: &Tensor, train: bool) -> Result<Tensor> {
        let length = embeddings.dim(1)?;
        if length > self.config.context_length {
            bail!("{length} tokens, the text tower takes {}", self.config.context_length);
        }
        let xs = embeddings.broadcast_add(&self.positional_embedding.narrow(0, 0, length)?)?;
        self.transformer.forward_t(&xs, &Mask::Causal, train)
    }
}
