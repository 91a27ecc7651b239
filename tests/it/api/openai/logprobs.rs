//! Probabilities of tokens, and of those that could have been in their place.

use serde_json::{Value, json};

use super::{chat, complete, error, events, fixture, request, respond, uri};
use crate::api::fixture::distinct;

#[tokio::test]
async fn the_probability_of_each_token_is_told_if_it_is_wanted() {
    let fixture = fixture();
    let answer = complete(&fixture, &chat("?", json!({"logprobs": true}))).await;
    let logprobs = answer.json()["choices"][0]["logprobs"].clone();
    let tokens = logprobs["content"].as_array().unwrap();
    let texts: Vec<&str> = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", " red", " square"]);
    assert_eq!(tokens[1]["bytes"], json!(b" red"));
    assert_eq!(tokens[0]["top_logprobs"], json!([]));
    let half = f64::from(0.5_f32.ln());
    assert!(tokens.iter().all(|token| token["logprob"].as_f64() == Some(half)), "{tokens:?}");

    let body = chat("?", json!({"logprobs": true, "stream": true}));
    let events = events(&complete(&fixture, &body).await);
    let last: Value = serde_json::from_str(&events[events.len() - 2].1).unwrap();
    assert_eq!(last["choices"][0]["logprobs"], logprobs);
    // Tags are not the text of the model.
    let answer = complete(&fixture, &chat("List keywords", json!({"logprobs": true}))).await;
    assert_eq!(answer.json()["choices"][0]["logprobs"], Value::Null);
}

/// The texts and probabilities of the alternatives of each token.
fn alternatives(tokens: &Value) -> Vec<Vec<(&str, f64)>> {
    tokens.as_array().unwrap().iter().map(alternatives_of).collect()
}

fn alternatives_of(token: &Value) -> Vec<(&str, f64)> {
    let one = |other: &Value| (other["logprob"].as_f64().unwrap().exp() * 1000.0).round() / 1000.0;
    let others = token["top_logprobs"].as_array().unwrap().iter();
    others.map(|other| (other["token"].as_str().unwrap(), one(other))).collect()
}

#[tokio::test]
async fn the_most_probable_tokens_are_told_as_well() {
    let fixture = fixture();
    let wanted = |number: i64, more: Value| {
        let mut body = chat("?", json!({"logprobs": true, "top_logprobs": number}));
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    // The same image and text, so only the number makes the difference to the cache.
    complete(&fixture, &chat("?", json!({"logprobs": true}))).await;
    let answer = complete(&fixture, &wanted(3, json!({}))).await.json();
    let tokens = &answer["choices"][0]["logprobs"]["content"];
    let others = [("[SEP]", 0.25), (" photo", 0.125)];
    let expected = [
        vec![("a", 0.5), ("[SEP]", 0.25), ("photo", 0.125)],
        [&[(" red", 0.5)], &others[..]].concat(),
        [&[(" square", 0.5)], &others[..]].concat(),
    ];
    assert_eq!(alternatives(tokens), expected, "{answer}");
    assert_eq!(tokens[2]["top_logprobs"][2]["bytes"], json!(b" photo"));
    let one = complete(&fixture, &wanted(1, json!({}))).await.json();
    assert_eq!(alternatives(&one["choices"][0]["logprobs"]["content"])[2], [(" square", 0.5)]);
    // Two captions are two lines.
    let mut two = wanted(1, json!({}));
    let part = json!({"type": "image_url", "image_url": {"url": uri(&distinct(3))}});
    two["messages"][0]["content"].as_array_mut().unwrap().push(part);
    let two = complete(&fixture, &two).await.json();
    let tokens = &two["choices"][0]["logprobs"]["content"];
    assert_eq!(alternatives(tokens)[3], [("\na", 0.5)], "{tokens}");
    // At the end of a stream.
    let streamed = complete(&fixture, &wanted(3, json!({"stream": true}))).await;
    let events = events(&streamed);
    let last: Value = serde_json::from_str(&events[events.len() - 2].1).unwrap();
    assert_eq!(alternatives(&last["choices"][0]["logprobs"]["content"]), expected);

    for number in [-1, 21, i64::MAX] {
        let respond = request("/v1/responses", &respond(json!({"top_logprobs": number})));
        let chat = request("/v1/chat/completions", &wanted(number, json!({})));
        for request in [respond, chat] {
            let answer = fixture.send(request).await;
            let error = error(&answer, 400, "invalid_request_error", "invalid_parameter");
            assert_eq!(error["param"], "top_logprobs");
            assert!(error["message"].as_str().unwrap().contains("between 0 and 20"), "{error}");
        }
    }
    // The number alone asks for nothing, and the answer is the one in the cache.
    let starts = fixture.script.starts();
    complete(&fixture, &chat("?", json!({}))).await;
    let answer = complete(&fixture, &chat("?", json!({"top_logprobs": 20}))).await.json();
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    assert_eq!(fixture.script.starts(), starts);
}

#[tokio::test]
async fn responses_include_probabilities_if_they_are_named() {
    let fixture = fixture();
    let send = async |more: Value| fixture.send(request("/v1/responses", &respond(more))).await;
    let include = json!(["reasoning.encrypted_content", "message.output_text.logprobs"]);
    let answer = send(json!({"include": include, "top_logprobs": 2})).await.json();
    assert_eq!(answer["top_logprobs"], 2);
    let logprobs = answer["output"][0]["content"][0]["logprobs"].clone();
    assert_eq!(alternatives(&logprobs)[1], [(" red", 0.5), ("[SEP]", 0.25)], "{answer}");
    let plain = send(json!({"include": include})).await.json();
    let tokens = &plain["output"][0]["content"][0]["logprobs"];
    assert_eq!((&tokens[0]["token"], &tokens[0]["top_logprobs"]), (&json!("a"), &json!([])));
    let answer = send(json!({"top_logprobs": 2, "include": null})).await.json();
    assert_eq!(answer["output"][0]["content"][0]["logprobs"], json!([]));

    let streamed = send(json!({"include": include, "top_logprobs": 2, "stream": true})).await;
    let found = events(&streamed).into_iter().map(|(name, data)| {
        let data: Value = serde_json::from_str(&data).unwrap();
        (name.unwrap(), data)
    });
    let told = found.filter_map(|(name, data)| match name.as_str() {
        "response.output_text.done" => Some(data["logprobs"].clone()),
        "response.content_part.done" => Some(data["part"]["logprobs"].clone()),
        "response.output_item.done" => Some(data["item"]["content"][0]["logprobs"].clone()),
        "response.completed" => {
            Some(data["response"]["output"][0]["content"][0]["logprobs"].clone())
        }
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), vec![logprobs; 4]);
}
