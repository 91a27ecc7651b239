//! Text to token ids and back, as `BlipProcessor` in transformers does it (a BERT tokenizer), or
//! `Blip2Processor` (the byte-level tokenizer of OPT).

use std::collections::HashMap;
use std::panic::catch_unwind;

use serde_json::{Value, json};
use tokenizers::{DecoderWrapper, Tokenizer as HfTokenizer};

use cutline_error::{Error, Result};

/// The tokenizer files of a checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerSource<'a> {
    /// `tokenizer.json`; preferred.
    pub json: Option<&'a [u8]>,
    /// `vocab.txt`, one word piece per line.
    pub vocab: Option<&'a [u8]>,
    /// `tokenizer_config.json`.
    pub config: Option<&'a [u8]>,
}

/// A loaded tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: HfTokenizer,
    clean_up: bool,
    /// Whether word pieces are bytes, and spaces parts of them.
    byte_level: bool,
}

impl Tokenizer {
    /// Builds the tokenizer from the files of a checkpoint.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model) if both `tokenizer.json` and `vocab.txt` are missing
    /// or one of the files cannot be read.
    pub fn load(source: TokenizerSource<'_>) -> Result<Self> {
        let config: Value = match source.config {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|e| {
                Error::model("tokenizer_config.json is not valid JSON; fetch the file again")
                    .with_source(e)
            })?,
            None => Value::Null,
        };
        let mut inner = match (source.json, source.vocab) {
            (Some(bytes), _) => {
                parse(bytes, "tokenizer.json cannot be read; fetch the file again")?
            }
            (None, Some(vocab)) => from_vocab(vocab, &config)?,
            (None, None) => {
                return Err(Error::model(
                    "the model has neither tokenizer.json nor vocab.txt; put one of them next to \
                     config.json",
                ));
            }
        };
        // As transformers does for a prompt. The file could ask for any length.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| {
            Error::model("the tokenizer cannot be used without truncation; fetch it again")
                .with_source(e)
        })?;
        // The default of transformers 5.
        let clean_up = config["clean_up_tokenization_spaces"].as_bool().unwrap_or(false);
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        // Otherwise a prompt could contain the tokens that stand for an image.
        inner.set_encode_special_tokens(byte_level);
        Ok(Self { inner, clean_up, byte_level })
    }

    /// Checks that the model has an embedding for each of the tokenizer's ids, because any of them can
    /// occur in a prompt.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model): tokenizer and model do not belong together.
    pub fn check_fits(&self, vocab_size: usize) -> Result<()> {
        match self.inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= vocab_size => Err(Error::model(format!(
                "the tokenizer has the id {id} for {token:?}, but the model has only {vocab_size} \
                 tokens; fetch both again from the same revision"
            ))),
            _ => Ok(()),
        }
    }

    /// The ids of a prompt, without the first and the last special token.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter) for text that the tokenizer
    /// cannot split.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(prompt, false).map_err(|e| {
            Error::parameter(
                "prompt",
                "the prompt cannot be split into word pieces; use plain text",
            )
            .with_source(e)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of words that follow others: where spaces are parts of word pieces, with one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_next(&self, words: &str) -> Result<Vec<u32>> {
        if self.byte_level { self.encode(&format!(" {words}")) } else { self.encode(words) }
    }

    /// The ids of a whole text for a text encoder: `[CLS] … [SEP]`. A text that has more than `most` ids
    /// with these is cut before the `[SEP]`. `field` is the parameter that the text comes from.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter) for text that the tokenizer
    /// cannot split.
    pub fn encode_whole(
        &self,
        text: &str,
        field: &'static str,
        most: Option<usize>,
    ) -> Result<Vec<u32>> {
        let [cls, sep] = self.ends()?;
        let encoding = self.inner.encode_fast(text, false).map_err(|e| {
            let detail =
                format!("a text of {field} cannot be split into word pieces; use plain text");
            Error::parameter(field, detail).with_source(e)
        })?;
        let between = most.map_or(usize::MAX, |most| most.saturating_sub(2));
        let mut ids = vec![cls];
        ids.extend(encoding.get_ids().iter().take(between));
        ids.push(sep);
        Ok(ids)
    }

    /// Checks that [`encode_whole`](Self::encode_whole) has its special tokens.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model): they are not in the vocabulary.
    pub fn check_ends(&self) -> Result<()> {
        self.ends().map(|_| ())
    }

    fn ends(&self) -> Result<[u32; 2]> {
        let ends = ["[CLS]", "[SEP]"].map(|token| self.inner.token_to_id(token));
        match ends {
            [Some(cls), Some(sep)] => Ok([cls, sep]),
            _ => Err(Error::model(
                "the tokenizer has no [CLS] and [SEP], which a text encoder needs; fetch it again",
            )),
        }
    }

    /// The text of a sequence, without special tokens and without ids that the vocabulary lacks (the
    /// hub's BLIP tokenizers lack the decoder's first token).
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): the decoder in `tokenizer.json` is broken.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true).map_err(|e| {
            Error::internal("the tokenizer cannot decode its own ids").with_source(e)
        })?;
        let text = if self.byte_level { text.trim().to_owned() } else { text };
        Ok(if self.clean_up { clean_up_spaces(&text) } else { text })
    }

    /// The word piece or special token with this id, as the vocabulary names it.
    #[must_use]
    pub fn name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of entries, including special tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// `PreTrainedTokenizerBase.clean_up_tokenization` of transformers: removes the spaces that splitting at
/// punctuation added to English text.
fn clean_up_spaces(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A BERT tokenizer from `vocab.txt`, with the settings of `BertTokenizer`.
fn from_vocab(vocab: &[u8], config: &Value) -> Result<HfTokenizer> {
    let text = std::str::from_utf8(vocab).map_err(|e| {
        Error::model("vocab.txt is not UTF-8 text; fetch the file again").with_source(e)
    })?;
    let ids: HashMap<&str, usize> =
        text.lines().enumerate().map(|(id, piece)| (piece.trim_end(), id)).collect();
    let id = |token: &str| {
        ids.get(token).copied().ok_or_else(|| {
            Error::model(format!("vocab.txt has no {token}; it is not a BERT vocabulary"))
        })
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    id("[UNK]")?;
    let mut special = vec!["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    special.extend(
        config["additional_special_tokens"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str),
    );
    let added: Vec<Value> = special
        .iter()
        .filter_map(|token| {
            ids.get(token).map(|id| {
                json!({"id": id, "content": token, "special": true, "single_word": false,
                       "lstrip": false, "rstrip": false, "normalized": false})
            })
        })
        .collect();
    let template = |kind: &str, name: &str| json!({kind: {"id": name, "type_id": 0}});
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": config["tokenize_chinese_chars"].as_bool().unwrap_or(true),
            "strip_accents": config["strip_accents"].as_bool(),
            "lowercase": config["do_lower_case"].as_bool().unwrap_or(true)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [template("SpecialToken", "[CLS]"), template("Sequence", "A"),
                       template("SpecialToken", "[SEP]")],
            "pair": [template("Sequence", "A"), template("Sequence", "B")],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [cls], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [sep], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    });
    let unusable = "vocab.txt does not give a valid tokenizer; fetch the file again";
    parse(document.to_string().as_bytes(), unusable)
}

/// Parses `tokenizer.json`. The library panics at some broken files; both that and an error become one
/// with the message `unusable`.
fn parse(json: &[u8], unusable: &'static str) -> Result<HfTokenizer> {
    match catch_unwind(|| HfTokenizer::from_bytes(json)) {
        Ok(parsed) => parsed.map_err(|error| Error::model(unusable).with_source(error)),
        Err(_) => Err(Error::model(unusable)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: &str =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nshirt\n-\nt\n'\ns\n.\ncat\n##s\n[DEC]\n";

    fn tokenizer(config: &str) -> Tokenizer {
        Tokenizer::load(TokenizerSource {
            json: None,
            vocab: Some(VOCAB.as_bytes()),
            config: Some(config.as_bytes()),
        })
        .unwrap()
    }

    #[test]
    fn a_vocabulary_is_enough() {
        let t = tokenizer(r#"{"additional_special_tokens": ["[DEC]"]}"#);
        assert_eq!(t.encode("A cats.").unwrap(), [5, 12, 13, 11]);
        assert_eq!(t.encode("dog").unwrap(), [1], "unknown words become [UNK]");
        // 14 is [DEC]; 99 is not in the vocabulary, like 30522 on the hub.
        assert_eq!(t.decode(&[99, 14, 5, 12, 13, 11, 3]).unwrap(), "a cats.");
        assert_eq!(t.vocab_size(), 15);
    }

    /// A tokenizer.json that asks for a tokenised prompt of this length.
    fn padded(length: u64) -> Result<Tokenizer> {
        let document = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0,
                           "direction": "Right"},
            "padding": {"strategy": {"Fixed": length}, "direction": "Right", "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]", "pad_to_multiple_of": null},
            "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "a": 1}, "unk_token": "[PAD]"},
        });
        let bytes = document.to_string();
        Tokenizer::load(TokenizerSource {
            json: Some(bytes.as_bytes()),
            ..TokenizerSource::default()
        })
    }

    #[test]
    fn a_file_does_not_decide_the_length_of_a_prompt() {
        assert_eq!(padded(1 << 50).unwrap().encode("a a").unwrap(), [1, 1]);
    }

    #[test]
    fn nesting_in_a_file_is_limited() {
        for [open, close] in [["[", "]"], ["{\"a\":", "}"]] {
            for name in ["normalizer", "model", "unknown"] {
                let nested = open.repeat(200_000) + "1" + &close.repeat(200_000);
                let json = format!("{{\"version\": \"1.0\", \"{name}\": {nested}}}");
                let source =
                    TokenizerSource { json: Some(json.as_bytes()), ..TokenizerSource::default() };
                assert!(Tokenizer::load(source).is_err(), "{name}");
                let source = TokenizerSource {
                    config: Some(nested.as_bytes()),
                    vocab: Some(VOCAB.as_bytes()),
                    json: None,
                };
                assert!(Tokenizer::load(source).is_err());
            }
        }
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let tokenizer = tokenizer("{}");
        assert!(tokenizer.check_fits(15).is_ok() && tokenizer.check_fits(16).is_ok());
        let error = tokenizer.check_fits(14).unwrap_err();
        assert!(error.detail().contains("14 for \"[DEC]\""), "{error}");
    }

    #[test]
    fn spaces_are_cleaned_up_only_if_the_config_says_so() {
        let ids = [12, 9, 10, 6];
        assert_eq!(tokenizer("{}").decode(&ids).unwrap(), "cat ' s shirt");
        let cleaning = tokenizer(r#"{"clean_up_tokenization_spaces": true}"#);
        assert_eq!(cleaning.decode(&ids).unwrap(), "cat's shirt");
    }

    /// The library unwraps the result of reading a decoder.
    #[test]
    fn a_broken_decoder_is_an_error_and_no_panic() {
        let json = "{\"decoder\": {\"type\": \"Byte\u{1}Level\"}, \"model\": {}}";
        let source = TokenizerSource { json: Some(json.as_bytes()), ..TokenizerSource::default() };
        let error = Tokenizer::load(source).unwrap_err();
        assert!(error.detail().contains("tokenizer.json cannot be read"), "{error}");
    }

    #[test]
    fn the_error_for_a_missing_tokenizer_names_the_file_to_add() {
        let error = Tokenizer::load(TokenizerSource::default()).unwrap_err();
        assert!(error.detail().contains("tokenizer.json"), "{error}");
        let source = TokenizerSource { vocab: Some(b"a\nb\n"), ..TokenizerSource::default() };
        assert!(Tokenizer::load(source).unwrap_err().detail().contains("[CLS]"));
    }
}
