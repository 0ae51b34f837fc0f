//! CLIP's tokenizer: OpenAI's, open_clip's and a `tokenizer.json`, on every string.

use sconce::clip::tokenizer::{ClipTokenizer, JsonTokenizer, SpecialTokens, Tokenize, TokenizerConfig};
use sconce_tests::golden::{Case, Result};
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    meta: Meta,
    cases: Vec<Text>,
}

#[derive(Deserialize)]
struct Meta {
    sot: u32,
    eot: u32,
    context: usize,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    clean_text: String,
    ids: Vec<u32>,
    openai_77: Vec<u32>,
    openai_strict_error: bool,
    open_clip_ids: Vec<u32>,
    open_clip_77: Vec<u32>,
    hf_ids: Vec<u32>,
    hf_77: Vec<u32>,
    decode: String,
}

pub(crate) fn run(case: &Case) -> Result<()> {
    let file: File = serde_json::from_value(case.json()?)?;
    let config = TokenizerConfig { context_length: file.meta.context, ..Default::default() };
    let openai = ClipTokenizer::new(&config)?;
    let cutting = ClipTokenizer::new(&TokenizerConfig { truncate: true, ..config.clone() })?;
    let open_clip =
        ClipTokenizer::new(&TokenizerConfig { special_tokens: SpecialTokens::OpenClip, truncate: true, ..config })?;
    let json = JsonTokenizer::from_bytes(openai.to_tokenizer_json().to_string().as_bytes(), file.meta.context)?;
    let ends = (openai.start_token(), openai.end_token());
    if ends != (file.meta.sot, file.meta.eot) {
        return Err(format!("start and end are {ends:?}").into());
    }
    let mut wrong = vec![];
    for case in &file.cases {
        let text = case.text.as_str();
        let mut check = |what: &str, equal: bool| {
            if !equal {
                wrong.push(format!("{what} of {text:?}"));
            }
        };
        check("clean text", sconce::clip::clean::clean(text) == case.clean_text);
        check("ids", openai.encode(text)? == case.ids);
        check("row", without_padding(cutting.row(text)?) == case.openai_77);
        check("refusal", openai.row(text).is_err() == case.openai_strict_error);
        check("open_clip's ids", open_clip.encode(text)? == case.open_clip_ids);
        check("open_clip's row", without_padding(open_clip.row(text)?) == case.open_clip_77);
        let [start, end] = [file.meta.sot, file.meta.eot];
        let mut whole = vec![start];
        whole.extend(json.encode(text)?);
        whole.push(end);
        check("tokenizer.json's ids", whole == case.hf_ids);
        check("tokenizer.json's row", without_padding(json.row(text)?) == case.hf_77);
        check("decoded text", openai.decode(&case.ids)? == case.decode);
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} differ: {}", wrong.len(), wrong.join("; ")).into()) }
}

/// The goldens leave out zeros at the end, also a token that happens to be zero ("!").
fn without_padding(mut row: Vec<u32>) -> Vec<u32> {
    while row.last() == Some(&0) {
        row.pop();
    }
    row
}
