use super::*;
use serde_json::json;
use utoipa::openapi::schema::Type;

fn fields(pairs: &[(&str, &str)]) -> Result<CaptionParams> {
    let mut fields = ParameterFields::default();
    for (name, text) in pairs {
        fields.add_text(name, text)?;
    }
    fields.finish()
}

#[test]
fn the_schema_of_every_field_is_understood() {
    let names: Vec<&str> = Parameter::all().iter().map(Parameter::name).collect();
    let full = CaptionParams {
        prompt: Some("a".to_owned()),
        model: Some("a".to_owned()),
        template: Some("a".to_owned()),
        variables: Some("{}".to_owned()),
        user: Some("a".to_owned()),
        seed: Some(1),
        max_chars: Some(20),
        ..CaptionParams::default()
    };
    let value = serde_json::to_value(full).unwrap();
    let declared: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, declared);
    for parameter in Parameter::all() {
        let kinds = [Type::String, Type::Boolean, Type::Integer, Type::Number];
        assert!(kinds.iter().any(|kind| parameter.is(kind)), "{parameter:?}");
        assert!(parameter.schema().description.is_some(), "{}", parameter.name());
        assert!(!parameter.help().contains(". "), "{}", parameter.help());
        parameter.check(&value[parameter.name()]).unwrap();
        let error = ParameterFields::default().add(parameter.name(), json!([])).unwrap_err();
        assert_eq!(error.field(), Some(parameter.name()), "{error}");
        assert!(!error.detail().contains("there is no parameter"), "{error}");
    }
    let error = ParameterFields::default().add("num_beam", json!(3)).unwrap_err();
    assert!(error.detail().contains("num_beams"), "the message lists what exists: {error}");
}

#[test]
fn the_published_defaults_are_the_defaults() {
    let mut fields = ParameterFields::default();
    let mut without = Vec::new();
    for parameter in Parameter::all() {
        match parameter.schema().default.clone() {
            Some(default) => fields.add(parameter.name(), default).unwrap(),
            None => without.push(parameter.name()),
        }
    }
    let params = fields.finish().unwrap();
    assert_ne!(params.given, Given::default());
    assert_eq!(CaptionParams { given: Given::default(), ..params }, CaptionParams::default());
    assert_eq!(without, ["prompt", "model", "template", "variables", "user", "seed", "max_chars"]);
}

#[test]
fn the_published_ranges_are_those_of_the_decoder() {
    for (name, least, most) in [
        ("num_beams", 1, crate::engine::MAX_BEAMS),
        ("num_captions", 1, crate::engine::MAX_BEAMS),
        ("max_new_tokens", 1, 1 << 20),
        ("max_chars", 20, 1000),
    ] {
        let parameter = Parameter::named(name).unwrap();
        for (value, accepted) in [(least, true), (most, true), (most + 1, false)] {
            assert_eq!(parameter.check(&json!(value)).is_ok(), accepted, "{name}={value}");
        }
        let error = parameter.check(&json!(least - 1)).unwrap_err();
        assert_eq!(error.field(), Some(name));
    }
}

#[test]
fn text_and_json_mean_the_same() {
    let (mut from_text, mut from_json) = (ParameterFields::default(), ParameterFields::default());
    for (name, text, json) in [
        ("prompt", "42", json!("42")),
        ("max_new_tokens", "7", json!(7)),
        ("do_sample", "on", json!(true)),
        ("temperature", "0.5", json!(0.5)),
        ("top_k", "0", json!(0)),
        ("seed", "18446744073709551615", json!(u64::MAX)),
        ("style", "alt_text", json!("alt_text")),
        ("max_chars", "80", json!(80)),
        ("colors", "0", json!(false)),
        ("cache", "bypass", json!("bypass")),
    ] {
        from_text.add_text(name, text).unwrap();
        from_json.add(name, json).unwrap();
    }
    let params = from_text.finish().unwrap();
    assert_eq!(params, from_json.finish().unwrap());
    assert_eq!(params.prompt.as_deref(), Some("42"));
    assert_eq!(params.seed, Some(u64::MAX));
    assert!(!params.colors && params.style == Style::AltText);
}

#[test]
fn null_is_not_given_and_whole_numbers_may_have_a_point() {
    let (mut json, mut text) = (ParameterFields::default(), ParameterFields::default());
    for parameter in Parameter::all() {
        json.add(parameter.name(), Value::Null).unwrap();
        json.add(parameter.name(), Value::Null).unwrap_err();
        if parameter.name() != "prompt" {
            text.add_text(parameter.name(), "null").unwrap();
            text.add_text(parameter.name(), "1").unwrap_err();
        }
    }
    assert_eq!(json.finish().unwrap(), CaptionParams::default());
    assert_eq!(text.finish().unwrap(), CaptionParams::default());
    assert_eq!(fields(&[("prompt", "null")]).unwrap().prompt.as_deref(), Some("null"));

    let whole = |value: Value| {
        let mut fields = ParameterFields::default();
        fields.add("seed", value)?;
        fields.finish().map(|params| params.seed)
    };
    for (value, expected) in [
        (json!(3.0), 3),
        (json!(-0.0), 0),
        (json!(1e15), 1_000_000_000_000_000),
        (json!(9_007_199_254_740_992.0), 1 << 53),
    ] {
        assert_eq!(whole(value.clone()).unwrap(), Some(expected), "{value}");
    }
    // Beyond that, the number that was written may be another one.
    for value in [json!(2.5), json!(-1.0), json!(1e19), json!(9_007_199_254_740_994.0)] {
        assert_eq!(whole(value.clone()).unwrap_err().field(), Some("seed"), "{value}");
    }
    assert_eq!(fields(&[("num_beams", "3.0"), ("seed", "-0")]).unwrap().num_beams, 3);
    for (name, text) in [
        ("num_beams", "1e400"),
        ("temperature", "1e400"),
        ("temperature", "NaN"),
        ("temperature", "-inf"),
        ("seed", "18446744073709551616"),
        ("num_beams", "+3"),
        ("num_beams", "0x3"),
    ] {
        assert_eq!(fields(&[(name, text)]).unwrap_err().field(), Some(name), "{text}");
    }
}

#[test]
fn wrong_types_and_values_are_refused() {
    for (name, value) in [
        ("num_beams", json!("3")),
        ("num_beams", json!(2.5)),
        ("num_beams", json!(-1)),
        ("num_beams", json!(11)),
        ("max_new_tokens", json!(1u64 << 40)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e300)),
        ("temperature", json!(0)),
        ("top_p", json!(1.5)),
        ("do_sample", json!(1)),
        ("prompt", json!(["a"])),
        ("cache", json!("never")),
        ("style", json!("poem")),
        ("style", json!(1)),
        ("max_chars", json!("80")),
        ("max_chars", json!(19)),
        ("capital", json!(true)),
    ] {
        let error = ParameterFields::default().add(name, value.clone()).unwrap_err();
        assert_eq!(error.field(), Some(name), "{value}");
    }
    assert!(fields(&[("num_beams", "three")]).is_err());
    assert!(fields(&[("num_beams", "")]).is_err());
    assert!(fields(&[("seed", "1"), ("seed", "1")]).is_err());
    let long = "a".repeat(ParameterFields::MAX_BYTES + 1);
    assert!(fields(&[("prompt", &long)]).is_err());
    assert!(fields(&[("prompt", &long[1..])]).is_ok());
}

#[test]
fn contradictions_are_refused() {
    let field = |pairs: &[(&str, &str)]| fields(pairs).unwrap_err().field().map(str::to_owned);
    assert_eq!(field(&[("num_captions", "2")]).as_deref(), Some("num_captions"));
    assert_eq!(
        field(&[("num_captions", "4"), ("num_beams", "3")]).as_deref(),
        Some("num_captions")
    );
    assert_eq!(
        field(&[("max_new_tokens", "3"), ("min_new_tokens", "4")]).as_deref(),
        Some("min_new_tokens")
    );
    assert_eq!(field(&[("max_chars", "80")]).as_deref(), Some("max_chars"));
    let emoji = [("emoji", "true"), ("style", "title")];
    assert_eq!(field(&emoji).as_deref(), Some("emoji"));
    fields(&[("emoji", "true"), ("style", "engaging"), ("max_chars", "80")]).unwrap();
}

#[test]
fn a_value_that_was_set_in_code_is_checked_too() {
    for (params, field) in [
        (CaptionParams { num_beams: 0, ..CaptionParams::default() }, "num_beams"),
        (CaptionParams { top_p: f32::NAN, ..CaptionParams::default() }, "top_p"),
    ] {
        assert_eq!(params.validate().unwrap_err().field(), Some(field));
    }
}
