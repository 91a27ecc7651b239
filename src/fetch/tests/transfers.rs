//! What is asked, and what is taken for an answer.

use super::*;

#[tokio::test]
async fn an_image_arrives_and_counts_until_it_is_dropped() {
    let server = Server::new().image("/a%20b.png?size=1");
    let log = server.log();
    let script = Script::example(server).await;
    let budget = Budget::new(1 << 20);
    let fetcher = script.fetcher(FetchSources::Public);
    let url = " http://Example.com:80/a b.png?size=1#fragment\n";
    let photo = fetcher.fetch(url, &budget).await.unwrap();
    assert_eq!((photo.len(), budget.held()), (PNG.len(), PNG.len() as u64));
    drop(photo);
    assert_eq!(budget.held(), 0);
    assert_eq!(script.lookups(), ["example.com"]);
    assert_eq!(script.connections(), [format!("{PUBLIC}:80")]);
    // Nothing of a client or of the environment is in the request.
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "GET /a%20b.png?size=1 HTTP/1.1\r\nhost: example.com\r\nuser-agent: cutline/{version}\r\n\
         accept: image/avif, image/webp, image/*;q=0.9, */*;q=0.5\r\naccept-encoding: identity\r\n\
         connection: close\r\n\r\n"
    );
    assert_eq!(log.heads(), [expected]);
}

#[tokio::test]
async fn the_format_is_told_from_the_bytes() {
    let html = b"<!DOCTYPE html><html><body>Please log in</body></html>";
    let server = Server::new()
        .at("/typed", [Step::Send(ok_with("content-type: text/html\r\n", PNG))])
        .at("/html", [Step::Send(ok_with("content-type: image/png\r\n", html))])
        .at("/empty", [Step::Send(ok(b""))])
        .at("/mail", [Step::Send(b"220 mail ready\r\n".to_vec())])
        .at("/later", [Step::Send(ok(&[&[b' '; 5000], PNG].concat()))])
        // Never read to its end.
        .at(
            "/video",
            [
                Step::Send(b"HTTP/1.1 200 OK\r\n\r\n\0\0\0\x18ftypmp42\0\0\0\0mp42isom".to_vec()),
                Step::Repeat(vec![0; 1000]),
            ],
        );
    let log = server.log();
    let script = Script::example(server).await;
    assert!(script.public("http://example.com/typed").await.is_ok());
    for path in ["html", "empty", "later", "video"] {
        let error = script.public(&format!("http://example.com/{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{path}: {error}");
    }
    log.left(1).await;
    assert_unreachable(script.public("http://example.com/mail").await, "not HTTP");
}

#[tokio::test]
async fn other_answers_are_no_images() {
    let status = |status: &str| {
        let png = String::from_utf8_lossy(PNG).len();
        [Step::Send(format!("HTTP/1.1 {status}\r\ncontent-length: {png}\r\n\r\n").into_bytes())]
    };
    let server = Server::new()
        .at("/201", status("201 Created"))
        .at("/204", status("204 No Content"))
        .at("/206", status("206 Partial Content"))
        .at("/304", status("304 Not Modified"))
        .at("/300", status("300 Multiple Choices"))
        .at("/302", status("302 Found"))
        .at("/401", status("401 Unauthorized"))
        .at("/500", status("500 Oops"));
    let script = Script::example(server).await;
    for code in ["201", "204", "206", "304", "300", "302", "401", "404", "500"] {
        let error = script.public(&format!("http://example.com/{code}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{code}: {error}");
        assert!(error.to_string().contains(&format!("the status {code};")), "{error}");
    }
}

#[tokio::test]
async fn bodies_are_read_in_every_form_of_http_but_not_decompressed() {
    let chunked = [
        &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n"[..],
        &PNG[..16],
        b"\r\nd\r\n",
        &PNG[16..],
        b"\r\n0\r\nx-trailer: 1\r\n\r\n",
    ];
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
    let server = Server::new()
        .at("/chunked", [Step::Send(chunked.concat())])
        .at("/close", [Step::Send([b"HTTP/1.0 200 OK\r\n\r\n", PNG].concat())])
        .at("/early", [Step::Send([&b"HTTP/1.1 103 Early Hints\r\n\r\n"[..], &ok(PNG)].concat())])
        .at("/identity", [Step::Send(ok_with("content-encoding: identity\r\n", PNG))])
        .at("/gzip", [Step::Send(ok_with("content-encoding: gzip\r\n", gzip))])
        .at("/lying", [Step::Send(ok_with("content-encoding: br\r\n", PNG))])
        .at(
            "/twice",
            [Step::Send(ok_with("content-encoding: identity\r\ncontent-encoding: x\r\n", PNG))],
        )
        .at("/hidden", [Step::Send(ok(gzip))]);
    let script = Script::example(server).await;
    for path in ["chunked", "close", "early", "identity"] {
        let photo = script.public(&format!("http://example.com/{path}")).await;
        assert_eq!(photo.expect(path).len(), PNG.len(), "{path}");
    }
    for path in ["gzip", "lying", "twice"] {
        let error = script.public(&format!("http://example.com/{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{path}: {error}");
        assert!(error.to_string().contains("compressed"), "{error}");
    }
    let hidden = script.public("http://example.com/hidden").await.unwrap_err();
    assert_eq!(hidden.kind(), ErrorKind::UnsupportedFormat);
}

#[tokio::test]
async fn nothing_is_fetched_unless_the_operator_says_so() {
    let script = Script::example(Server::new().image("/a.png")).await;
    let fetcher = script.fetcher(FetchSources::Off);
    for url in ["http://example.com/a.png", "no address", "file:///etc/passwd"] {
        let error = fetcher.fetch(url, &Budget::new(1000)).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidParameter, Some("image_url")));
        assert!(error.to_string().contains("FETCH_URLS"), "{error}");
    }
    assert!(script.lookups().is_empty() && script.connections().is_empty());
}

#[tokio::test]
async fn listed_hosts_may_be_private_and_others_are_not_fetched() {
    let script = Script::default();
    script.name("nas", &[&["192.168.1.5"]]);
    script.name("moved", &[&["169.254.169.254"]]);
    script.name("example.com", &[&[PUBLIC]]);
    let server = Server::new()
        .image("/a.png")
        .redirect("/out", "http://example.com/a.png")
        .redirect("/port", "http://nas:22/")
        .redirect("/loopback", "http://127.0.0.1:9000/a.png");
    script.server_at("192.168.1.5:9000", server.clone()).await;
    script.server_at("127.0.0.1:9000", server).await;
    let fetcher =
        script.fetcher(listed("nas:9000, moved, localhost, 127.0.0.1:9000, 169.254.169.254"));
    let budget = Budget::new(1000);
    let fetch = async |url: &str| fetcher.fetch(url, &budget).await;
    fetch("http://nas:9000/a.png").await.unwrap();
    fetch("http://nas:9000/loopback").await.unwrap();
    let before = script.connections().len();
    for url in [
        "http://nas/",
        "http://example.com/a.png",
        "http://192.168.1.5:9000/a.png",
        "http://localhost:1/",
    ] {
        let error = fetch(url).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::InvalidParameter, Some("image_url")),
            "{url}"
        );
        assert!(error.to_string().contains("FETCH_HOSTS"), "{error}");
    }
    assert_unreachable(fetch("http://moved/").await, "a listed name with the address of metadata");
    assert_unreachable(fetch("http://169.254.169.254/").await, "metadata itself");
    assert_eq!(script.connections().len(), before, "nothing was tried");
    for path in ["out", "port"] {
        let error = fetch(&format!("http://nas:9000/{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{path}: {error}");
    }
    assert!(
        !script
            .connections()
            .iter()
            .any(|address| address.contains(PUBLIC) || address.ends_with(":22"))
    );
}
