//! What a model elsewhere is told to do.

use serde_json::{Value, json};

use super::script::{delta, ollama, openai};
use super::{BOX, Bench, CLOUD, FILE};
use crate::captioner::{CaptionParams, RecipeVersion, Style};
use cutline_prompts::Content;

/// The text that the backend got as the only message of a user, and the whole body.
async fn told(kind: &str, params: CaptionParams) -> (String, Value) {
    let (file, host) = match kind {
        "ollama" => (FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["box"]]"#), BOX),
        _ => (FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["cloud"]]"#), CLOUD),
    };
    // The instruction of the file, which a prompt replaces.
    let file = file.replace("[[route]]", "instruction = \"Be brief.\"\n[[route]]");
    let bench = Bench::new(&file);
    let whole = params.style != Style::Caption;
    bench.script.usually(
        host,
        match (kind, whole) {
            ("ollama", false) => ollama("a red square"),
            ("ollama", true) => super::Reply::Status(
                200,
                "",
                r#"{"message":{"content":"a red square"},"done":true}"#.to_owned(),
            ),
            (_, false) => openai("a red square"),
            (_, true) => super::Reply::Status(
                200,
                "",
                r#"{"choices":[{"message":{"content":"a red square"}}]}"#.to_owned(),
            ),
        },
    );
    assert!(!delta("").is_empty());
    bench.start(params).end().await.unwrap();
    let seen = bench.script.seen(host).remove(0);
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    let messages = body["messages"].as_array().unwrap();
    assert_eq!((messages.len(), &messages[0]["role"]), (1, &json!("user")));
    let content = &messages[0]["content"];
    let text = if kind == "ollama" { content } else { &content[0]["text"] };
    (text.as_str().unwrap().to_owned(), body)
}

fn with(content: Value, variables: &str) -> CaptionParams {
    let content: Content = serde_json::from_value(content).unwrap();
    let version = RecipeVersion {
        id: 1,
        name: "tell:1".into(),
        digest: "d".into(),
        content: content.checked().unwrap(),
        experiment: None,
    };
    let params = CaptionParams {
        template: Some("tell:1".into()),
        variables: Some(variables.into()),
        ..CaptionParams::default()
    };
    let photo = json!({"photo": {"name": "rex.jpg", "tags": ["dog", "beach"]}});
    params.with_recipe(version, photo.as_object().unwrap().clone()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_whole_rendered_instruction_arrives_and_nothing_else() {
    // Longer than a buffer, with lines, quotes and other alphabets.
    let long = "Beschreibe \"das Bild\" – genau!\n".repeat(400);
    let template = format!(
        "{long}{{% if who %}}Mention {{{{ who }}}} of {{{{ photo.name }}}}.{{% endif %}} {{% for tag in \
         photo.tags %}}#{{{{ tag }}}} {{% endfor %}}\u{1f436}"
    );
    let expected = format!("{long}Mention Rex \"the dog\" of rex.jpg. #dog #beach \u{1f436}");
    assert!(expected.len() > 10_000);
    for kind in ["ollama", "openai"] {
        for style in ["caption", "title"] {
            let content = json!({"kind": "instruction", "template": template, "style": style});
            let params = with(content, r#"{"who": "Rex \"the dog\""}"#);
            let (text, body) = told(kind, params).await;
            assert_eq!(text, expected, "{kind} {style}");
            // A title comes in one piece.
            assert_eq!(body["stream"], style == "caption", "{kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_prompt_the_file_says_what_to_do_and_a_prefix_is_asked_for() {
    let prefix = || CaptionParams { prompt: Some("a photo of".into()), ..CaptionParams::default() };
    let (text, _) = told("openai", prefix()).await;
    assert_eq!(text, "Be brief. Begin with these words: a photo of");
    let (text, _) = told("ollama", prefix()).await;
    assert!(
        text.starts_with("Describe this image") && text.ends_with("words: a photo of"),
        "{text}"
    );
    // A version of a prefix is asked for in the same words.
    let content = json!({"kind": "prefix", "template": "a photo of {{ who }}"});
    let (text, _) = told("openai", with(content, r#"{"who": "Rex"}"#)).await;
    assert_eq!(text, "Be brief. Begin with these words: a photo of Rex");
}
