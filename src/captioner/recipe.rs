//! Captions by a version of a prompt.

use std::sync::Arc;

use cutline_prompts::{Content, Kind, Variables};
use serde_json::Value;

use super::{CaptionParams, Choice, Style, TextStyle};
use crate::captioner::style::{Fallback, NOTHING_LEFT};
use cutline_error::{Error, Result};
use cutline_image::Colors;

/// Word pieces of a prefix at most.
pub(super) const MAX_PREFIX: usize = 32;

/// A version of a prompt, rendered for one photo.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Its number in the library.
    pub id: i64,
    /// `name:3`.
    pub name: String,
    /// The hash of what it says.
    pub digest: String,
    /// The number in the library and the name of the experiment that chose it.
    pub experiment: Option<(i64, String)>,
    /// Whether it says what the caption continues.
    pub(super) is_prefix: bool,
    /// What is made of the caption.
    chain: Option<Chain>,
    /// The whole instruction for a model that follows instructions; BLIP does not.
    instruction: Option<String>,
}

/// What is made of a caption.
#[derive(Debug, Clone, PartialEq)]
struct Chain {
    content: Content,
    variables: Variables,
    /// What is known about the photo.
    context: Variables,
}

impl Recipe {
    /// The instruction for a model that follows instructions, if this is one.
    #[must_use]
    pub fn instruction(&self) -> Option<&str> {
        self.instruction.as_deref()
    }

    /// What tells its answers from those of other versions.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.name, self.digest)
    }
}

/// A version of a prompt before it is rendered.
#[derive(Debug, Clone)]
pub struct RecipeVersion {
    /// Its number in the library.
    pub id: i64,
    /// `name:3`.
    pub name: String,
    /// The hash of what it says.
    pub digest: String,
    /// What it says.
    pub content: Content,
    /// The number in the library and the name of the experiment that chose it.
    pub experiment: Option<(i64, String)>,
}

impl CaptionParams {
    /// The variables of the request.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): they are not an object.
    pub fn template_variables(&self) -> Result<Variables> {
        let Some(text) = &self.variables else { return Ok(Variables::new()) };
        serde_json::from_str(text).map_err(|error| {
            let detail = format!("variables must be a JSON object ({error}); correct it");
            Error::parameter("variables", detail)
        })
    }

    /// The parameters that a version of a prompt says, for a photo of which `context` is known.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): a variable is missing, or the request
    /// contradicts the version.
    pub fn with_recipe(&self, version: RecipeVersion, context: Variables) -> Result<Self> {
        let variables = self.template_variables()?;
        let mut params = self.clone();
        let RecipeVersion { id, name, digest, content, experiment } = version;
        let is_prefix = content.kind == Kind::Prefix;
        let (chain, instruction) = (None, None);
        let mut recipe = Recipe { id, name, digest, experiment, is_prefix, chain, instruction };
        let clash = |field: &'static str, what: &str| {
            Err(Error::parameter(field, format!("the template says {what}; leave {field} out")))
        };
        if content.kind == Kind::Prefix && self.prompt.is_some() {
            return clash("prompt", "what the caption continues");
        }
        if content.kind == Kind::Chain && self.style != Style::Caption {
            return clash("style", "what becomes of the caption");
        }
        match content.kind {
            Kind::Prefix => params.prompt = Some(content.render(&variables, &context)?),
            Kind::Instruction => recipe.instruction = Some(content.render(&variables, &context)?),
            Kind::Style | Kind::Chain => drop(content.values(&variables)?),
        }
        // What the request says itself wins.
        if self.style == Style::Caption
            && let Some(style) = content.style.as_deref().and_then(Style::named)
        {
            params.style = style;
            params.emoji |= content.emoji && style == Style::Engaging;
            let most = content.max_chars.filter(|_| style != Style::Caption);
            params.max_chars = params.max_chars.or(most.map(|most| most as usize));
        }
        if content.kind == Kind::Chain {
            recipe.chain = Some(Chain { content, variables, context });
        }
        params.recipe = Some(Arc::new(recipe));
        Ok(params)
    }

    /// The style as which a text is kept: what a chain makes is a post, not the caption.
    pub(crate) fn kept_style(&self) -> Style {
        let chain = self.recipe.as_ref().is_some_and(|recipe| recipe.chain.is_some());
        if chain { Style::Engaging } else { self.style }
    }

    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): a template was asked for where there
    /// are none.
    pub(crate) fn check_recipe(&self) -> Result<()> {
        if self.template.is_some() && self.recipe.is_none() {
            return Err(Error::parameter(
                "template",
                "templates are kept in a library and used by the native interfaces; set LIBRARY, or leave \
                 template out",
            ));
        }
        if self.template.is_none() && (self.variables.is_some() || self.user.is_some()) {
            let field = if self.variables.is_some() { "variables" } else { "user" };
            let detail = format!("{field} belongs to a template; name a template as well");
            return Err(Error::parameter(field, detail));
        }
        Ok(())
    }
}

/// `choices` as the chain of a recipe makes them; as they are without one. Those whose text becomes empty are
/// left out.
pub(super) fn chained(
    choices: Vec<Choice>,
    fallback: Option<Fallback>,
    recipe: Option<&Recipe>,
    colors: &Colors,
    fallback_text: &str,
) -> Result<(Vec<Choice>, Option<Fallback>)> {
    let Some(chain) = recipe.and_then(|recipe| recipe.chain.as_ref()) else {
        return Ok((choices, fallback));
    };
    let put = |choice: Choice| -> Result<Choice> {
        let mut context = chain.context.clone();
        context.extend(facts(&choice.text, colors));
        let text = chain.content.render(&chain.variables, &context)?;
        Ok(Choice { text, ..choice })
    };
    let mut all = choices.into_iter().map(put).collect::<Result<Vec<_>>>()?;
    if all.iter().any(|choice| !choice.text.is_empty()) {
        all.retain(|choice| !choice.text.is_empty());
        return Ok((all, None));
    }
    all.truncate(1);
    all.iter_mut().for_each(|choice| fallback_text.clone_into(&mut choice.text));
    Ok((all, Some(Fallback::because(NOTHING_LEFT))))
}

/// What a chain is given of a caption and the colours of its photo.
#[must_use]
pub fn facts(caption: &str, colors: &Colors) -> Variables {
    let styled = |style| TextStyle { style, ..TextStyle::default() }.apply(caption, Some(colors));
    let keywords = styled(Style::Keywords);
    let words = keywords.split(", ").filter(|word| !word.is_empty());
    let names = colors.colors.iter().map(|color| color.name.clone());
    let mood = serde_json::to_value(colors.mood.label).unwrap_or_default();
    let mut facts = Variables::new();
    facts.insert("caption".into(), caption.into());
    facts.insert("alt_text".into(), styled(Style::AltText).into());
    facts.insert("engaging".into(), styled(Style::Engaging).into());
    facts.insert("title".into(), styled(Style::Title).into());
    facts.insert("keywords".into(), words.collect::<Value>());
    facts.insert("colors".into(), names.collect::<Value>());
    facts.insert("mood".into(), mood);
    facts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::captioner::TokenSequence;
    use crate::engine::FinishReason;

    fn version(content: Value) -> RecipeVersion {
        let content: Content = serde_json::from_value(content).unwrap();
        RecipeVersion {
            id: 7,
            name: "alt:3".into(),
            digest: "d".into(),
            content: content.checked().unwrap(),
            experiment: None,
        }
    }

    fn asked(variables: &str) -> CaptionParams {
        CaptionParams {
            template: Some("alt".into()),
            variables: Some(variables.into()),
            ..CaptionParams::default()
        }
    }

    fn colors() -> Colors {
        Colors { colors: Vec::new(), mood: cutline_image::Mood::of(&[]) }
    }

    #[test]
    fn a_version_says_prefix_or_style() {
        let prefix = version(json!({"kind": "prefix", "template": "a photo of {{ who }}"}));
        let params = asked(r#"{"who": "Rex"}"#).with_recipe(prefix.clone(), Variables::new());
        assert_eq!(params.unwrap().prompt.as_deref(), Some("a photo of Rex"));
        let with_prompt = CaptionParams { prompt: Some("x".into()), ..asked(r#"{"who": "Rex"}"#) };
        let error = with_prompt.with_recipe(prefix.clone(), Variables::new()).unwrap_err();
        assert_eq!(error.field(), Some("prompt"));
        for wrong in ["[1]", "{", "{}", r#"{"who": "Rex", "x": 1}"#] {
            let error = asked(wrong).with_recipe(prefix.clone(), Variables::new()).unwrap_err();
            assert_eq!(error.field(), Some("variables"), "{wrong}");
        }
        let style = version(json!({
            "kind": "style", "style": "engaging", "emoji": true, "max_chars": 80,
        }));
        let params = asked("{}").with_recipe(style.clone(), Variables::new()).unwrap();
        assert_eq!(
            (params.style, params.max_chars, params.emoji),
            (Style::Engaging, Some(80), true)
        );
        params.validate().unwrap();
        params.check_recipe().unwrap();
        let own = CaptionParams { style: Style::Title, ..asked("{}") };
        let own = own.with_recipe(style, Variables::new()).unwrap();
        assert_eq!((own.style, own.max_chars, own.emoji), (Style::Title, None, false));
    }

    #[test]
    fn an_instruction_is_kept_for_models_that_follow_it() {
        let content = json!({"kind": "instruction", "template": "Describe {{ photo.name }}."});
        let context = json!({"photo": {"name": "rex.jpg"}}).as_object().unwrap().clone();
        let params = asked("{}").with_recipe(version(content), context).unwrap();
        assert_eq!(params.prompt, None);
        assert_eq!(params.recipe.unwrap().instruction(), Some("Describe rex.jpg."));
    }

    #[test]
    fn templates_need_a_library() {
        assert_eq!(asked("{}").check_recipe().unwrap_err().field(), Some("template"));
        let alone = CaptionParams { template: None, ..asked("{}") };
        assert_eq!(alone.check_recipe().unwrap_err().field(), Some("variables"));
        CaptionParams::default().check_recipe().unwrap();
    }

    #[test]
    fn a_chain_makes_texts_of_captions() {
        let chain = json!({"kind": "chain", "template": "{{ title }}{% for one in keywords %} #{{ one }}{% endfor %}"});
        let params = asked("{}").with_recipe(version(chain), Variables::new()).unwrap();
        let choice = |text: &str| Choice {
            text: text.into(),
            confidence: 0.5,
            tokens: 3,
            finish_reason: FinishReason::Stop,
            matching: None,
            sequence: TokenSequence::default(),
        };
        let recipe = params.recipe.as_deref();
        let (all, fallback) =
            chained(vec![choice("a dog on a beach")], None, recipe, &colors(), "none").unwrap();
        assert_eq!((all[0].text.as_str(), fallback), ("Dog on a Beach #dog #beach", None));
        let (all, fallback) = chained(vec![choice("")], None, recipe, &colors(), "none").unwrap();
        assert!(all[0].text == "none" && fallback.unwrap().fallback);
        let (same, _) = chained(vec![choice("x")], None, None, &colors(), "none").unwrap();
        assert_eq!(same[0].text, "x");
    }
}
