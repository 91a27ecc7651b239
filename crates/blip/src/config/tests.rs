use super::*;

fn refused(json: &str) -> String {
    let error = BlipConfig::from_json(json.as_bytes()).unwrap_err();
    assert_eq!(error.kind(), cutline_error::ErrorKind::Model);
    error.to_string()
}

#[test]
fn missing_fields_have_the_defaults_of_transformers() {
    let config = BlipConfig::from_json(
        br#"{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}"#,
    )
    .unwrap();
    assert_eq!(config.vision.grid(), 24);
    assert_eq!(config.vision.num_attention_heads, 12);
    assert_eq!(config.vision.layer_norm_eps, 1e-5);
    assert_eq!(config.text.num_attention_heads, 8);
    assert_eq!(config.text.layer_norm_eps, 1e-12);
    assert_eq!((config.text.bos_token_id, config.text.sep_token_id), (30522, 102));
    assert_eq!(config.text.vocab_size, 30524);
    assert!(config.tie_word_embeddings);
}

#[test]
fn the_head_is_untied_only_if_both_sections_say_so() {
    let tied = |top, text| {
        let json = format!(
            r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], "tie_word_embeddings": {top},
                "text_config": {{"tie_word_embeddings": {text}}}}}"#
        );
        BlipConfig::from_json(json.as_bytes()).unwrap().tie_word_embeddings
    };
    assert!(tied(true, true) && tied(true, false) && tied(false, true));
    assert!(!tied(false, false));
}

#[test]
fn other_architectures_are_refused_with_the_reason() {
    assert!(refused(r#"{"model_type": "llava"}"#).contains("llava"));
    assert!(refused("{}").contains("model_type"));
    let pretraining = r#"{"model_type": "blip", "architectures": ["BlipForPreTraining"]}"#;
    assert!(refused(pretraining).contains("BlipForPreTraining"));
    for unnamed in [r#"{"model_type": "blip"}"#, r#"{"model_type": "blip", "architectures": []}"#] {
        assert!(refused(unnamed).contains("BlipForQuestionAnswering"));
    }
    assert!(refused("not json").contains("config.json"));
}

#[test]
fn impossible_shapes_are_refused_with_the_field() {
    let with = |section: &str| {
        refused(&format!(
            r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], {section}}}"#
        ))
    };
    assert!(with(r#""text_config": {"num_attention_heads": 7}"#).contains("text_config"));
    assert!(with(r#""vision_config": {"num_attention_heads": 0}"#).contains("vision_config"));
    assert!(with(r#""vision_config": {"hidden_act": "mish"}"#).contains("mish"));
    assert!(with(r#""vision_config": {"image_size": [384, 224]}"#).contains("384 × 224"));
    assert!(with(r#""vision_config": {"image_size": 383}"#).contains("patch_size"));
    assert!(with(r#""text_config": {"sep_token_id": null}"#).contains("sep_token_id"));
    assert!(with(r#""text_config": {"bos_token_id": 30524}"#).contains("bos_token_id"));
    assert!(with(r#""text_config": {"is_decoder": false}"#).contains("is_decoder"));
}

#[test]
fn absurd_numbers_are_refused_before_anything_is_read() {
    for (section, field) in [
        ("vision_config", "hidden_size"),
        ("vision_config", "intermediate_size"),
        ("vision_config", "num_hidden_layers"),
        ("vision_config", "image_size"),
        ("text_config", "hidden_size"),
        ("text_config", "intermediate_size"),
        ("text_config", "num_hidden_layers"),
        ("text_config", "vocab_size"),
        ("text_config", "max_position_embeddings"),
    ] {
        // The last is the largest that the type can hold.
        for number in ["0", "1000000000", "1099511627776", "18446744073709551615"] {
            let json = format!(
                r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], "{section}": {{"{field}": {number}}}}}"#
            );
            let error = refused(&json);
            assert!(error.contains(section) && error.contains(field), "{error}");
        }
        for number in ["-1", "1e300", "1.5", "18446744073709551616", "\"12\"", "[1e9, 1e9]"] {
            let json = format!(
                r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], "{section}": {{"{field}": {number}}}}}"#
            );
            refused(&json);
        }
    }
    let with = |section: &str| {
        refused(&format!(
            r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], {section}}}"#
        ))
    };
    let patches = r#""vision_config": {"image_size": 8192, "patch_size": 1}"#;
    assert!(with(patches).contains("patches"));
    assert!(with(r#""text_config": {"layer_norm_eps": 1e300}"#).contains("layer_norm_eps"));
    assert!(with(r#""vision_config": {"layer_norm_eps": -1}"#).contains("layer_norm_eps"));
}

#[test]
fn an_unused_padding_token_need_not_be_valid() {
    for id in ["null", "-1", "99999"] {
        let json = format!(
            r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], "text_config": {{"pad_token_id": {id}}}}}"#
        );
        BlipConfig::from_json(json.as_bytes()).unwrap();
    }
}

#[test]
fn the_first_architecture_says_which_model_it_is() {
    for family in Family::ALL {
        let json = format!(
            r#"{{"model_type": "{}", "architectures": ["{}", "BlipModel"], "image_token_index": 1}}"#,
            family.model_type(),
            family.architecture()
        );
        assert_eq!(BlipConfig::from_json(json.as_bytes()).unwrap().family, family);
    }
}

#[test]
fn a_model_that_answers_questions_has_one_width() {
    let json = |family: Family| {
        format!(
            r#"{{"model_type": "blip", "architectures": ["{}"],
                "vision_config": {{"hidden_size": 1024, "num_attention_heads": 16}}}}"#,
            family.architecture()
        )
    };
    let error = refused(&json(Family::QuestionAnswering));
    assert!(error.contains("1024") && error.contains("768"), "{error}");
    let config = BlipConfig::from_json(json(Family::Retrieval).as_bytes()).unwrap();
    assert_eq!(config.image_text_hidden_size, 256);
}

fn blip2(more: &str) -> String {
    format!(
        r#"{{"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"], {more}}}"#
    )
}

#[test]
fn what_a_configuration_of_blip2_leaves_out_is_as_in_transformers() {
    let json = blip2(
        r#""image_token_index": 50265, "text_config": {"model_type": "opt", "vocab_size": 50304,
            "eos_token_id": 50118, "hidden_size": 2560, "word_embed_proj_dim": 2560,
            "num_attention_heads": 32, "num_hidden_layers": 32, "ffn_dim": 10240}"#,
    );
    let config = BlipConfig::from_json(json.as_bytes()).unwrap();
    let (vision, text, query) = (&config.vision, &config.text, config.query.as_ref().unwrap());
    assert_eq!((vision.hidden_size, vision.head_dim(), vision.grid()), (1408, 88, 16));
    assert_eq!((text.bos_token_id, text.sep_token_id, text.head_dim()), (2, 50118, 80));
    assert_eq!((text.hidden_act, text.layer_norm_eps), (Activation::Relu, 1e-5));
    assert_eq!((query.tokens, query.image_token, query.positions), (32, 50265, 2048));
    assert_eq!((query.head_dim(), query.cross_attention_frequency), (64, 2));
}

#[test]
fn other_language_models_of_blip2_are_refused_with_a_checkpoint_that_works() {
    let with = |text: &str| refused(&blip2(&format!(r#""image_token_index": 3, {text}"#)));
    let t5 = with(r#""text_config": {"model_type": "t5", "d_model": 2048}"#);
    assert!(t5.contains("\"t5\"") && t5.contains("Salesforce/blip2-opt-2.7b"), "{t5}");
    for (text, part) in [
        (r#""text_config": {"word_embed_proj_dim": 512}"#, "word_embed_proj_dim"),
        (r#""text_config": {"do_layer_norm_before": false}"#, "do_layer_norm_before"),
        (r#""text_config": {"max_position_embeddings": 33}"#, "max_position_embeddings"),
        (r#""text_config": {"eos_token_id": 50272}"#, "eos_token_id"),
        (r#""vision_config": {"qkv_bias": false}"#, "qkv_bias"),
        (r#""qformer_config": {"cross_attention_frequency": 0}"#, "cross_attention_frequency"),
        (r#""num_query_tokens": 0"#, "num_query_tokens"),
    ] {
        assert!(with(text).contains(part), "{text}");
    }
    assert!(refused(&blip2(r#""vision_config": {}"#)).contains("image_token_index"));
    let other = r#"{"model_type": "blip", "architectures": ["Blip2ForConditionalGeneration"]}"#;
    assert!(refused(other).contains("Blip2ForConditionalGeneration"));
}
