//! How prompts are put together, and what they refuse.

use candle_core::{DType, Tensor};
use sconce_adapt::{ClassPosition, CoCoOp, CoOp, Error, PromptConfig, Prompts, Result, nearest_words};
use sconce_clip::{Tokenize, normalize};
use sconce_nn::ParamStore;

use crate::support::{C, CLASSES, CPU, LENGTH, Tiny, tiny, two_tokens};

fn prompts(tiny: &Tiny, cfg: &PromptConfig, classes: &[&str]) -> Result<Prompts> {
    Prompts::new(cfg, &tiny.model.text, &tiny.tokenizer, classes)
}

#[test]
fn every_layout_is_the_tokens_in_its_order() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let row = |name: &str| tiny.tokenizer.encode(name);
    for n_ctx in [1, 2, 5] {
        for (position, before) in
            [(ClassPosition::End, n_ctx), (ClassPosition::Middle, n_ctx / 2), (ClassPosition::Front, 0)]
        {
            for class_specific in [false, true] {
                let cfg = PromptConfig { n_ctx, class_specific, position, ctx_init: None };
                let store = ParamStore::new(1, DType::F32, CPU);
                let head = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
                let whole = head.prompts.assemble(&head.ctx)?;
                assert_eq!(whole.dims(), [3, LENGTH, C]);
                for (k, class) in CLASSES.iter().enumerate() {
                    let name = row(&class.replace('_', " "))?;
                    let mut words = name.clone();
                    words.extend(row(".")?);
                    words.push(tiny.tokenizer.end_token());
                    let embed = |id: u32| tiny.model.text.token_embedding.get(id as usize)?.to_vec1::<f32>();
                    let ctx = if class_specific { head.ctx.get(k)? } else { head.ctx.clone() };
                    let mut wanted = vec![embed(tiny.tokenizer.start_token())?];
                    wanted.extend(ctx.narrow(0, 0, before)?.to_vec2::<f32>()?);
                    for &id in &words[..name.len()] {
                        wanted.push(embed(id)?);
                    }
                    wanted.extend(ctx.narrow(0, before, n_ctx - before)?.to_vec2::<f32>()?);
                    for &id in &words[name.len()..] {
                        wanted.push(embed(id)?);
                    }
                    assert_eq!(head.prompts.ends[k], wanted.len() - 1);
                    wanted.resize(LENGTH, embed(0)?);
                    assert_eq!(whole.get(k)?.to_vec2::<f32>()?, wanted, "{position:?} {n_ctx} {class}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn words_to_begin_with() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let cfg = |words: &str| PromptConfig { ctx_init: Some(words.into()), ..two_tokens() };
    let store = ParamStore::new(1, DType::F32, CPU);
    let head = CoOp::new(&cfg(" a_photo of  a "), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    assert_eq!(head.prompts.n_ctx, 4);
    // The head is then zero-shot classification by that template.
    let ids = tiny.tokenizer.tokenize(&["a photo of a golden retriever."], CPU)?;
    let text = normalize(&tiny.model.encode_text(&ids)?)?.to_vec2::<f32>()?;
    let found = head.class_features()?.to_vec2::<f32>()?;
    let off = found[1].iter().zip(&text[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-6, "{off}");
    // A context is read back as the words it began as; a class-specific one begins as them for each class.
    let words = nearest_words(&head.ctx, &head.text, &tiny.tokenizer, 2)?;
    let nearest: Vec<(&str, f32)> = words.iter().map(|row| (row[0].0.trim(), row[0].1)).collect();
    assert_eq!(nearest, [("a", 0.0), ("photo", 0.0), ("of", 0.0), ("a", 0.0)]);
    assert!(words.iter().all(|row| row.len() == 2 && row[1].1 > 0.0));
    let store = ParamStore::new(1, DType::F32, CPU);
    let each = PromptConfig { class_specific: true, ..cfg("a photo of a") };
    let each = CoOp::new(&each, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    assert_eq!(each.ctx.get(2)?.to_vec2::<f32>()?, head.ctx.to_vec2::<f32>()?);
    assert!(nearest_words(&each.ctx, &head.text, &tiny.tokenizer, 2).is_err());
    assert_eq!(nearest_words(&head.ctx, &head.text, &tiny.tokenizer, 0)?, vec![vec![]; 4]);
    // Nothing but spaces is no word; a word of several tokens is named.
    assert_eq!(prompts(&tiny, &cfg(" _ "), &CLASSES)?.n_ctx, 2);
    let found = prompts(&tiny, &cfg("a hippopotamus of"), &CLASSES);
    assert!(matches!(&found, Err(Error::Words { word, tokens }) if word == "hippopotamus" && *tokens > 1), "{found:?}");
    let found = prompts(&tiny, &cfg("a photo."), &CLASSES);
    assert!(matches!(&found, Err(Error::Words { word, tokens: 2 }) if word == "photo."), "{found:?}");
    Ok(())
}

#[test]
fn what_makes_no_prompt_is_refused() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let cfg = two_tokens();
    assert!(matches!(prompts(&tiny, &cfg, &[]), Err(Error::NoClasses)));
    for empty in ["", " ", "_"] {
        let found = prompts(&tiny, &cfg, &["cat", empty]);
        assert!(matches!(found, Err(Error::ClassName { index: 1, .. })), "{found:?}");
    }
    let found = prompts(&tiny, &cfg, &["cat <|endoftext|>"]);
    assert!(matches!(found, Err(Error::ClassName { index: 0, .. })), "{found:?}");
    let nothing = PromptConfig { n_ctx: 0, ..cfg.clone() };
    assert!(matches!(prompts(&tiny, &nothing, &CLASSES), Err(Error::Config(_))));
    // Start, context, "cat", full stop and end fill the context exactly; one more is too many.
    let length = |n_ctx| PromptConfig { n_ctx, ..cfg.clone() };
    assert_eq!(prompts(&tiny, &length(LENGTH - 4), &["cat"])?.ends, [LENGTH - 1]);
    let found = prompts(&tiny, &length(LENGTH - 3), &["cat"]);
    assert!(matches!(found, Err(Error::TooLong { tokens: 17, context: LENGTH, .. })), "{found:?}");
    for n_ctx in [LENGTH, usize::MAX] {
        assert!(matches!(prompts(&tiny, &length(n_ctx), &["cat"]), Err(Error::TooLong { .. })));
    }
    // The usual names of ImageNet's classes have two pairs of twins: they are told, not refused.
    let twins = prompts(&tiny, &cfg, &["cat", "Cat"])?;
    assert_eq!(twins.suffix.get(0)?.to_vec2::<f32>()?, twins.suffix.get(1)?.to_vec2::<f32>()?);
    for cfg in [
        PromptConfig { class_specific: true, ..cfg.clone() },
        PromptConfig { position: ClassPosition::Front, ..cfg.clone() },
    ] {
        let store = ParamStore::new(1, DType::F32, CPU);
        let found = CoCoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb());
        assert!(matches!(found, Err(Error::Config(_))));
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_errors() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let store = ParamStore::new(1, DType::F32, CPU);
    let head = CoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, CPU);
    assert!(head.logits(&zeros(&[2, 31])?).is_err());
    for shape in [&[3, C][..], &[2, C + 1], &[2, 2, C], &[3, 2, C, 1], &[C]] {
        assert!(head.prompts.assemble(&zeros(shape)?).is_err(), "{shape:?}");
    }
    let store = ParamStore::new(1, DType::F32, CPU);
    let head = CoCoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    assert!(head.logits(&zeros(&[2, 31])?).is_err());
    assert!(head.predict(&zeros(&[2, 31])?).is_err());
    assert!(head.predict(&zeros(&[32])?).is_err());
    Ok(())
}

#[test]
fn cocoop_predicts_in_parts_what_it_computes_at_once() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let classes: Vec<String> = (0..150).map(|i| format!("cat {i}")).collect();
    let store = ParamStore::new(1, DType::F32, CPU);
    let head = CoCoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &classes, store.vb())?;
    let images = tiny.features(5, 2)?; // three at a time
    let (parts, whole) = (head.predict(&images)?, head.logits(&images)?);
    assert!(!parts.track_op() && whole.track_op());
    let difference = (parts - whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-4, "{difference}");
    Ok(())
}
