//! Prompts whose words are learned: where context and class name stand among the frozen tokens.

use candle_core::{Result, Tensor, bail};
use sconce_clip::Tokenize;
use sconce_clip::model::TextTransformer;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Where the class name stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassPosition {
    /// After the context.
    #[default]
    End,
    /// Between its two halves, the first of which is the shorter one.
    Middle,
    /// Before it.
    Front,
}

/// Options of learned prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptConfig {
    /// Number of learned tokens; that of [`ctx_init`](Self::ctx_init)'s tokens where there are words to begin with.
    pub n_ctx: usize,
    /// A context for each class instead of one for all.
    pub class_specific: bool,
    /// Words that the context begins as, `a photo of a`; underscores stand for spaces. Random when `None`.
    pub ctx_init: Option<String>,
    /// Where the class name stands.
    pub position: ClassPosition,
}

impl Default for PromptConfig {
    /// CoOp's: 16 tokens for all classes, random, the class name at the end.
    fn default() -> Self {
        Self { n_ctx: 16, class_specific: false, ctx_init: None, position: ClassPosition::End }
    }
}

/// The frozen part of the prompts of some classes: `[start] [context] [class name] [.] [end]` without its context.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Embedding of the start token, `(K, 1, C)`.
    pub prefix: Tensor,
    /// Embeddings of everything after the context, `(K, L - 1 - n_ctx, C)`.
    pub suffix: Tensor,
    /// Token ids with a placeholder for the context, `(K, L)`.
    pub ids: Tensor,
    /// Place of the end token of each class, the same wherever the class name stands.
    pub ends: Vec<usize>,
    /// Tokens of each class name.
    pub name_lens: Vec<usize>,
    /// Embeddings of the words that the context begins as, `(n_ctx, C)`.
    pub words: Option<Tensor>,
    /// Number of context tokens.
    pub n_ctx: usize,
    /// Where the class name stands.
    pub position: ClassPosition,
}

impl Prompts {
    /// Embeds the prompts of `classes`; underscores in names and words stand for spaces.
    ///
    /// # Errors
    /// Without classes or context tokens, for a prompt that the context of the text tower does not hold, and for names that
    /// the tokenizer refuses.
    pub fn new<C: AsRef<str>>(
        cfg: &PromptConfig,
        text: &TextTransformer,
        tokenizer: &dyn Tokenize,
        classes: &[C],
    ) -> crate::Result<Self> {
        Self::with_ending(cfg, text, tokenizer, classes, ".")
    }

    /// As [`Self::new`], with other words than a full stop behind each class name, as they stand: ` , a sketch image..`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_ending<C: AsRef<str>>(
        cfg: &PromptConfig,
        text: &TextTransformer,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        ending: &str,
    ) -> crate::Result<Self> {
        if classes.is_empty() {
            return Err(Error::NoClasses);
        }
        let spaced = |words: &str| words.replace('_', " ");
        let (phrase, n_ctx) = match cfg.ctx_init.as_deref().map(spaced).filter(|words| !words.trim().is_empty()) {
            Some(words) => (words.trim().to_owned(), tokenizer.encode(words.trim())?.len()),
            None => (vec!["X"; cfg.n_ctx].join(" "), cfg.n_ctx),
        };
        if n_ctx == 0 {
            return Err(Error::Config("a prompt without context tokens has nothing to learn".into()));
        }
        let context = text.config.context_length;
        let (mut ids, mut ends, mut name_lens) = (vec![], vec![], vec![]);
        for class in classes.iter().map(|class| spaced(class.as_ref())) {
            let mut row = vec![tokenizer.start_token()];
            row.extend(tokenizer.encode(&format!("{phrase} {class}{ending}"))?);
            row.push(tokenizer.end_token());
            if row.len() > context {
                return Err(Error::TooLong { class, tokens: row.len(), context });
            }
            ends.push(row.len() - 1);
            name_lens.push(tokenizer.encode(&class)?.len());
            row.resize(context, 0);
            ids.extend(row);
        }
        let ids = Tensor::from_vec(ids, (classes.len(), context), text.token_embedding.device())?;
        // The tower is frozen, and so is what is taken from it here.
        let embeddings = text.embed(&ids)?.detach(); // (K, L, C)
        let has_words = cfg.ctx_init.as_deref().is_some_and(|words| !words.trim().is_empty());
        Ok(Self {
            prefix: embeddings.narrow(1, 0, 1)?,
            suffix: embeddings.narrow(1, 1 + n_ctx, context - 1 - n_ctx)?,
            words: has_words.then(|| embeddings.narrow(0, 0, 1)?.narrow(1, 1, n_ctx)?.squeeze(0)).transpose()?,
            ids,
            ends,
            name_lens,
            n_ctx,
            position: cfg.position,
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.ends.len()
    }

    /// The embeddings of the prompts with the context in its place.
    ///
    /// # Shapes
    /// - `ctx` `(n_ctx, C)` for all classes or `(K, n_ctx, C)`; output `(K, L, C)`
    ///
    /// # Errors
    /// When the context has another shape.
    pub fn assemble(&self, ctx: &Tensor) -> Result<Tensor> {
        let (classes, width) = (self.classes(), self.prefix.dim(2)?);
        let ctx = match *ctx.dims() {
            [n, c] if (n, c) == (self.n_ctx, width) => ctx.unsqueeze(0)?.broadcast_as((classes, n, c))?,
            [k, n, c] if (k, n, c) == (classes, self.n_ctx, width) => ctx.clone(),
            _ => bail!(
                "prompt: a context of shape {:?} for {classes} classes of {} tokens of {width} channels",
                ctx.dims(),
                self.n_ctx
            ),
        };
        let ctx = ctx.to_dtype(self.prefix.dtype())?;
        let before = match self.position {
            ClassPosition::End => return Tensor::cat(&[&self.prefix, &ctx, &self.suffix], 1),
            ClassPosition::Middle => self.n_ctx / 2,
            ClassPosition::Front => 0,
        };
        let after = self.n_ctx - before;
        let row = |(k, &name): (usize, &usize)| {
            let (prefix, ctx, suffix) = (self.prefix.get(k)?, ctx.get(k)?, self.suffix.get(k)?);
            let rest = suffix.narrow(0, name, suffix.dim(0)? - name)?;
            let parts =
                [prefix, ctx.narrow(0, 0, before)?, suffix.narrow(0, 0, name)?, ctx.narrow(0, before, after)?, rest];
            // `narrow` of no rows is a tensor that `cat` takes.
            Tensor::cat(&parts, 0) // (L, C)
        };
        let rows = self.name_lens.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&rows, 0)
    }
}
