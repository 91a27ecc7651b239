//! Renders templates.
//!
//! Whoever may save a template need not be trusted with the server: the engine counts work and bytes as fuel,
//! and there is nothing that a template could load. Values are data; nothing in them is interpreted.

use std::collections::BTreeSet;

use cutline_error::{Error, Result};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

/// The longest template, in bytes.
pub const MAX_TEMPLATE: usize = 16 << 10;

/// Work of one rendering. One unit pays for an instruction or 64 bytes, so this also bounds the memory to
/// about 2 MiB.
const FUEL: u64 = 30_000;

/// Nesting of blocks.
const DEPTH: usize = 50;

/// What the engine itself defines.
const OWN: [&str; 5] = ["range", "dict", "namespace", "debug", "loop"];

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment
}

/// The variables that a template asks for, sorted.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): the template is too long or wrong.
pub fn variables_of(template: &str) -> Result<BTreeSet<String>> {
    if template.len() > MAX_TEMPLATE {
        return Err(Error::parameter(
            "template",
            format!("a template may have {MAX_TEMPLATE} bytes; shorten it"),
        ));
    }
    let environment = environment();
    let parsed = environment.template_from_str(template).map_err(|error| wrong(&error))?;
    let all = parsed.undeclared_variables(false);
    Ok(all.into_iter().filter(|name| !OWN.contains(&name.as_str())).collect())
}

/// Renders a template to at most `most` characters.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): the template is wrong, a value is missing
/// or has the wrong type, or the text is too long.
pub fn render(template: &str, values: &Map<String, Value>, most: usize) -> Result<String> {
    let environment = environment();
    let parsed = environment.template_from_str(template).map_err(|error| wrong(&error))?;
    let values = minijinja::Value::from(minijinja::value::Serde(values));
    let text = parsed.render(values).map_err(|error| wrong(&error))?;
    let text: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    let text = text.trim();
    if text.chars().count() > most {
        return Err(Error::parameter(
            "template",
            format!("the template makes more than {most} characters; shorten it, or a variable"),
        ));
    }
    Ok(text.to_owned())
}

fn wrong(error: &minijinja::Error) -> Error {
    let at = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    let detail: String = error.detail().unwrap_or_default().chars().take(200).collect();
    let what = match error.kind() {
        minijinja::ErrorKind::OutOfFuel => "it takes too much work".to_owned(),
        minijinja::ErrorKind::UndefinedError => format!("a variable is not given {detail}"),
        kind => format!("{kind} {detail}"),
    };
    let detail = format!("the template does not work{at}: {}; correct it", what.trim_end());
    Error::parameter("template", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(template: &str, values: Value) -> Result<String> {
        render(template, values.as_object().unwrap(), 1000)
    }

    #[test]
    fn templates_have_variables_conditions_and_loops() {
        for (template, expected) in [
            ("a photo of {{ thing }}", "a photo of a dog"),
            ("{% if thing %}{{ thing | upper }}{% endif %}", "A DOG"),
            ("{% for tag in tags %}#{{ tag }} {% endfor %}", "#dog #ball"),
            ("{{ tags | join(', ') }} \u{0}", "dog, ball"),
            ("{{ missing | default('none') }}", "none"),
        ] {
            let values = json!({"thing": "a dog", "tags": ["dog", "ball"]});
            assert_eq!(with(template, values).unwrap(), expected, "{template}");
        }
        let names =
            variables_of("{{ b }} {% for a in range(3) %}{{ a }}{{ c.d }}{% endfor %}").unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn values_are_data() {
        let text = with("{{ a }}", json!({"a": "{{ b }} <b> {% raw %}"})).unwrap();
        assert_eq!(text, "{{ b }} <b> {% raw %}");
    }

    #[test]
    fn what_is_not_given_is_an_error() {
        for template in ["{{ a }}", "{{ photo.place }}", "{% if a %}x{% endif %}"] {
            let error = with(template, json!({"photo": {}})).unwrap_err();
            assert_eq!(error.field(), Some("template"), "{template}");
            assert!(error.detail().contains("not given"), "{error}");
        }
    }

    #[test]
    fn work_and_output_are_bounded() {
        for template in [
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
            "{% set a = 'x' * 1000 %}{{ a * 1000000 }}",
            "{% for a in range(9999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
            "{{ 'a' * 1001 }}",
            "{{ range(100000) | list }}",
        ] {
            assert!(with(template, json!({})).is_err(), "{template}");
        }
        let double = "{% set a = a ~ a %}".repeat(60);
        assert!(
            with(&format!("{{% set a = 'xxxxxxxx' %}}{double}{{{{ a }}}}"), json!({})).is_err()
        );
        let replaced = "{{ a ".to_owned() + &"| replace('a', 'aaaaaaaaaaaaaaaa')".repeat(12) + "}}";
        assert!(with(&replaced, json!({"a": "aaaa"})).is_err());
    }

    #[test]
    fn wrong_templates_are_refused() {
        let nested = "{% if a %}".repeat(500) + &"{% endif %}".repeat(500);
        let deep = "{{ ".to_owned() + &"(".repeat(5000) + "a" + &")".repeat(5000) + " }}";
        for template in [
            "{{ a",
            "{% if %}",
            "{% include 'x' %}",
            "{% extends 'x' %}",
            "{% import 'x' as y %}",
            "{% macro a() %}{% endmacro %}",
            "{{ a | nothing }}",
            &"x".repeat(MAX_TEMPLATE + 1),
            &nested,
            &deep,
        ] {
            let checked = variables_of(template).and_then(|_| with(template, json!({"a": 1})));
            let error = checked.unwrap_err();
            assert_eq!(error.field(), Some("template"));
        }
    }
}
