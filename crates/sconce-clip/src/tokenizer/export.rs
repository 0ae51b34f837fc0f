//! A [`ClipTokenizer`] as a `tokenizer.json`.

use super::{ClipTokenizer, Tokenize, merges::written};
use serde_json::{Map, Value, json};

impl ClipTokenizer {
    /// The `tokenizer.json` with this vocabulary, as Hugging Face publishes it for CLIP.
    ///
    /// That format has no text repair, no entities and no final sigma: it gives the same ids only for texts that
    /// [`crate::clean::clean`] leaves alone but for case and white space.
    pub fn to_tokenizer_json(&self) -> Value {
        let [start, end] = self.config().special_tokens.names();
        let merges = self.merges();
        let specials = [(start, self.start_token()), (end, self.end_token())];
        let tokens = (0..self.start_token()).filter_map(|id| Some((written(merges.token(id)?), id)));
        let vocab: Map<String, Value> = tokens
            .chain(specials.map(|(name, id)| (name.to_owned(), id)))
            .map(|(name, id)| (name, id.into()))
            .collect();
        let limit = self.start_token();
        let pairs: Vec<[String; 2]> =
            merges.in_order().filter(|(id, _)| *id < limit).map(|(_, pair)| pair.map(written)).collect();
        let pattern = format!(
            "{}|'s|'t|'re|'ve|'m|'ll|'d|[\\p{{L}}]+|[\\p{{N}}]|[^\\s\\p{{L}}\\p{{N}}]+",
            [start, end].map(|s| s.replace('|', "\\|")).join("|")
        );
        let added = |(name, id): (&str, u32)| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": specials.map(added),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [end, self.end_token()], "cls": [start, self.start_token()],
                "trim_offsets": false, "add_prefix_space": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": end, "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": pairs},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn the_exported_file_gives_the_same_ids() -> Result<()> {
        let ours = ClipTokenizer::new(&TokenizerConfig {
            merges: 2000,
            context_length: 12,
            truncate: true,
            ..Default::default()
        })?;
        let json = ours.to_tokenizer_json().to_string();
        let theirs = JsonTokenizer::from_bytes(json.as_bytes(), 12)?;
        assert_eq!((theirs.start_token(), theirs.end_token()), (ours.start_token(), ours.end_token()));
        assert_eq!(theirs.vocab_size(), ours.vocab_size());
        for text in [
            "A photo of a cat.",
            "it's 3:15, don't!",
            "漢字 😀 naïve",
            "",
            "a long long long long text about many many many words",
        ] {
            assert_eq!(theirs.row(text)?, ours.row(text)?, "{text}");
        }
        Ok(())
    }

    /// Cuts, flipped bits and contradictions give errors, never a panic.
    #[test]
    fn hostile_tokenizer_json_is_refused() -> Result<()> {
        let small = ClipTokenizer::new(&TokenizerConfig { merges: 20, context_length: 8, ..Default::default() })?;
        let json = small.to_tokenizer_json();
        for (path, value) in [
            ("/model/merges", serde_json::json!([["zz", "qq"]])),
            ("/model/vocab", serde_json::json!({"a": 4_000_000_000u32})),
            ("/model/type", serde_json::json!("Nonsense")),
            ("/pre_tokenizer/pretokenizers/0/pattern/Regex", serde_json::json!("(((")),
            ("/post_processor", serde_json::json!(null)),
            ("/model/unk_token", serde_json::json!("not there")),
        ] {
            let mut bad = json.clone();
            if let Some(place) = bad.pointer_mut(path) {
                *place = value;
            }
            let result = JsonTokenizer::from_bytes(bad.to_string().as_bytes(), 8).and_then(|t| t.row("a cat ☃"));
            assert!(matches!(result, Ok(_) | Err(Error::Tokenizer(_))), "{path}");
        }
        let text = json.to_string().into_bytes();
        for i in 0..200usize {
            let mut bad = text.clone();
            let at = i * 7919 % bad.len();
            if i % 2 == 0 {
                bad.truncate(at)
            } else {
                bad[at] ^= 1 << (i % 8)
            }
            if let Ok(tokenizer) = JsonTokenizer::from_bytes(&bad, 8) {
                let _ = tokenizer.row("a cat");
            }
        }
        assert!(
            JsonTokenizer::from_bytes(b"{}", 8).is_err() && JsonTokenizer::from_bytes(&[b'['; 100_000], 8).is_err()
        );
        assert!(matches!(JsonTokenizer::from_file("/nonexistent/tokenizer.json", 8), Err(Error::Io { .. })));
        Ok(())
    }
}
