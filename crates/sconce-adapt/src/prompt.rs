//! Prompts whose words are learned: where context and class name stand among the frozen tokens.

use candle_core::{Tensor, bail};
use sconce_clip::Tokenize;
use sconce_clip::model::TextTransformer;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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
    /// Number of learned tokens; that of [`ctx_init`](Self::ctx_init)'s words where there are some to begin with.
    pub n_ctx: usize,
    /// A context for each class instead of one for all. The official code has one for all wherever there are words to begin
    /// with, whatever this says; here each class begins with them.
    pub class_specific: bool,
    /// Words that the context begins as, `a photo of a`, each a token of its own; underscores stand for spaces. Random when
    /// there are none.
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

impl PromptConfig {
    fn words(&self) -> Option<Vec<String>> {
        let words: Vec<String> = spaced(self.ctx_init.as_deref()?).split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(words)
    }
}

fn spaced(text: &str) -> String {
    text.replace('_', " ")
}

/// Number of context tokens that words make, one each.
fn count_words(words: &[String], tokenizer: &dyn Tokenize) -> Result<usize> {
    for word in words {
        let tokens = tokenizer.encode(word)?.len();
        if tokens != 1 {
            return Err(Error::Words { word: word.clone(), tokens });
        }
    }
    Ok(words.len())
}

fn warn_of_twins(names: &[String]) {
    let mut known = std::collections::HashSet::new();
    for name in names.iter().filter(|name| !known.insert(name.trim().to_lowercase())) {
        tracing::warn!("two classes are named `{}`: their prompts are the same", name.trim());
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
    /// Two classes of one name get the same prompt and are told in the log: the usual list of `ImageNet`'s names has two such
    /// pairs.
    ///
    /// # Errors
    /// - [`Error::NoClasses`]; [`Error::ClassName`] for a name without a letter in it or with the text of a special token;
    /// - [`Error::Config`] for a prompt without context tokens; [`Error::Words`] when a word to begin with is several tokens;
    /// - [`Error::TooLong`] for a prompt that the context of the text tower does not hold.
    pub fn new<C: AsRef<str>>(
        cfg: &PromptConfig,
        text: &TextTransformer,
        tokenizer: &dyn Tokenize,
        classes: &[C],
    ) -> Result<Self> {
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
    ) -> Result<Self> {
        if classes.is_empty() {
            return Err(Error::NoClasses);
        }
        let names: Vec<String> = classes.iter().map(|class| spaced(class.as_ref())).collect();
        warn_of_twins(&names);
        let length = text.config.context_length;
        let (phrase, n_ctx) = match cfg.words() {
            Some(words) => (words.join(" "), count_words(&words, tokenizer)?),
            None if cfg.n_ctx == 0 => {
                return Err(Error::Config("a prompt without context tokens has nothing to learn".into()));
            }
            None if cfg.n_ctx >= length => {
                let tokens = cfg.n_ctx.saturating_add(3); // with start, name and end
                return Err(Error::TooLong { class: names[0].clone(), tokens, context: length });
            }
            None => (vec!["X"; cfg.n_ctx].join(" "), cfg.n_ctx),
        };
        let (mut ids, mut ends, mut name_lens) = (vec![], vec![], vec![]);
        for (index, class) in names.iter().enumerate() {
            let refuse = |reason| Err(Error::ClassName { index, class: class.clone(), reason });
            let name = tokenizer.encode(class)?;
            let tokens = tokenizer.encode(&format!("{phrase} {class}{ending}"))?;
            if name.is_empty() {
                return refuse("there is nothing in it to read");
            }
            if tokens.iter().any(|id| [tokenizer.start_token(), tokenizer.end_token()].contains(id)) {
                return refuse("it holds the text of a special token");
            }
            // Where context and name are not tokens of their own, they have no places.
            if tokens.len() < n_ctx + name.len() {
                return refuse("the tokenizer does not keep it apart from what is around it");
            }
            if tokens.len() + 2 > length {
                return Err(Error::TooLong { class: class.clone(), tokens: tokens.len() + 2, context: length });
            }
            let start = ids.len();
            ids.push(tokenizer.start_token());
            ids.extend(tokens);
            ends.push(ids.len() - start);
            ids.push(tokenizer.end_token());
            ids.resize(start + length, 0);
            name_lens.push(name.len());
        }
        let ids = Tensor::from_vec(ids, (names.len(), length), text.token_embedding.device())?;
        // The tower is frozen, and so is what is taken from it here.
        let embeddings = text.embed(&ids)?.detach(); // (K, L, C)
        let words = cfg.words().map(|_| embeddings.get(0)?.narrow(0, 1, n_ctx)).transpose()?;
        Ok(Self {
            prefix: embeddings.narrow(1, 0, 1)?,
            suffix: embeddings.narrow(1, 1 + n_ctx, length - 1 - n_ctx)?,
            words,
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
    pub fn assemble(&self, ctx: &Tensor) -> candle_core::Result<Tensor> {
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
        let rows = self.name_lens.iter().enumerate().map(row).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::stack(&rows, 0)
    }
}
