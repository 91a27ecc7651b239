//! Time, bytes and the number of transfers.

use super::*;

const SHORT: Duration = Duration::from_millis(300);

fn head(headers: &str) -> Step {
    Step::Send(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes())
}

/// One byte now and then.
fn drip(bytes: &[u8]) -> Vec<Step> {
    let each =
        bytes.iter().map(|byte| [Step::Wait(Duration::from_millis(20)), Step::Send(vec![*byte])]);
    each.flatten().collect()
}

#[tokio::test]
async fn slow_servers_are_given_up() {
    let slow_body =
        [vec![head("content-length: 90000\r\n"), Step::Send(PNG.to_vec())], drip(&[0; 1000])]
            .concat();
    let redirects =
        [Step::Wait(SHORT / 2), Step::Send(b"HTTP/1.1 302 F\r\nlocation: /turns\r\n\r\n".to_vec())];
    let server = Server::new()
        .at("/silent", [Step::Hold])
        .at("/headers", drip(&b"HTTP/1.1 200 OK\r\nx: 1\r\n".repeat(99)))
        .at("/body", slow_body)
        .at("/rest", [head("content-length: 90000\r\n"), Step::Send(PNG.to_vec()), Step::Hold])
        .at("/turns", redirects);
    let log = server.log();
    let script = Script::example(server).await;
    let fetcher = script.fetcher_within(FetchSources::Public, SHORT);
    let budget = Budget::new(1 << 20);
    for path in ["silent", "headers", "body", "rest", "turns"] {
        let begin = Instant::now();
        let error =
            fetcher.fetch(&format!("http://example.com/{path}"), &budget).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{path}: {error}");
        assert!(error.to_string().contains("within 0.3 s"), "{path}: {error}");
        assert!(begin.elapsed() >= SHORT && begin.elapsed() < SHORT * 20, "{path}");
        assert_eq!(budget.held(), 0, "{path}");
    }
    log.left(2).await;
}

#[tokio::test]
async fn endless_and_large_bodies_are_cut_off() {
    let more = MAX_BYTES + 1;
    let large = [PNG, &vec![0; more - PNG.len()]].concat();
    let exact = [PNG, &vec![0; MAX_BYTES - PNG.len()]].concat();
    let server = Server::new()
        .at("/endless", [head(""), Step::Send(PNG.to_vec()), Step::Repeat(vec![0; 5000])])
        .at(
            "/chunks",
            [
                head("transfer-encoding: chunked\r\n"),
                Step::Send([b"19\r\n", &PNG[..25], b"\r\n"].concat()),
                Step::Repeat(b"5\r\n12345\r\n".repeat(1000)),
            ],
        )
        .at("/announced", [head(&format!("content-length: {more}\r\n")), Step::Hold])
        .at("/huge", [head("content-length: 18446744073709551615\r\n"), Step::Hold])
        .at("/large", [Step::Send(ok(&large))])
        .at("/exact", [Step::Send(ok(&exact))]);
    let log = server.log();
    let script = Script::example(server).await;
    let budget = Budget::new(1 << 20);
    let fetcher = script.fetcher(FetchSources::Public);
    for path in ["endless", "chunks", "announced", "large"] {
        let error =
            fetcher.fetch(&format!("http://example.com/{path}"), &budget).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge, "{path}: {error}");
        assert_eq!(budget.held(), 0, "{path}");
    }
    assert!(fetcher.fetch("http://example.com/huge", &budget).await.is_err());
    log.left(3).await;
    let photo = fetcher.fetch("http://example.com/exact", &budget).await.unwrap();
    assert_eq!(photo.len(), MAX_BYTES);
}

#[tokio::test]
async fn wrong_lengths_are_found() {
    let server = Server::new()
        .at("/short", [head("content-length: 500\r\n"), Step::Send(PNG.to_vec())])
        .at("/long", [head("content-length: 20\r\n"), Step::Send(PNG.to_vec())])
        .at(
            "/two",
            [head("content-length: 20\r\ncontent-length: 30\r\n"), Step::Send(PNG.to_vec())],
        )
        .at("/negative", [head("content-length: -1\r\n"), Step::Send(PNG.to_vec())])
        .at(
            "/chunk",
            [head("transfer-encoding: chunked\r\n"), Step::Send(b"FFFFFFFFFFFFFFFFF\r\n".to_vec())],
        )
        .at(
            "/cut",
            [head("transfer-encoding: chunked\r\n"), Step::Send([b"19\r\n", PNG].concat())],
        );
    let script = Script::example(server).await;
    for path in ["short", "two", "negative", "chunk", "cut"] {
        let error = script.public(&format!("http://example.com/{path}")).await.expect_err(path);
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{path}: {error}");
    }
    // What follows the announced bytes is never read.
    assert_eq!(script.public("http://example.com/long").await.unwrap().len(), 20);
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let server = Server::new()
        .at(
            "/headers",
            [Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec()), Step::Repeat(b"x: 1\r\n".repeat(1000))],
        )
        .at(
            "/header",
            [Step::Send(b"HTTP/1.1 200 OK\r\nx: ".to_vec()), Step::Repeat(vec![b'x'; 1000])],
        )
        .at("/hints", [Step::Repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec())])
        .at(
            "/trailers",
            [
                head("transfer-encoding: chunked\r\n"),
                Step::Send([b"19\r\n", &PNG[..25], b"\r\n0\r\n"].concat()),
                Step::Repeat(b"x: 1\r\n".repeat(1000)),
            ],
        );
    let script = Script::example(server).await;
    for path in ["headers", "header", "trailers"] {
        let error = script.public(&format!("http://example.com/{path}")).await.expect_err(path);
        assert_eq!(error.kind(), ErrorKind::FetchFailed, "{path}: {error}");
    }
    let fetcher = script.fetcher_within(FetchSources::Public, SHORT);
    let error = fetcher.fetch("http://example.com/hints", &Budget::new(1000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FetchFailed);
}

#[tokio::test]
async fn bytes_count_from_the_first_and_no_memory_is_a_reason_to_wait() {
    let half = [PNG, &vec![0; MAX_BYTES / 2]].concat();
    let server = Server::new()
        .at("/stuck", [head("content-length: 90000\r\n"), Step::Send(half.clone()), Step::Hold])
        .at("/half", [Step::Send(ok(&half))]);
    let log = server.log();
    let script = Script::example(server).await;
    let fetcher = script.fetcher(FetchSources::Public);
    let budget = Budget::new(half.len() as u64 + 1000);
    let waiting = tokio::spawn({
        let (fetcher, budget) = (fetcher.clone(), budget.clone());
        async move { fetcher.fetch("http://example.com/stuck", &budget).await }
    });
    while budget.held() < half.len() as u64 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(budget.held(), half.len() as u64, "as much as has arrived, not as was announced");
    let error = fetcher.fetch("http://example.com/half", &budget).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    // The client leaves.
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    log.left(1).await;
    assert_eq!(budget.held(), 0);
    assert!(fetcher.fetch("http://example.com/half", &budget).await.is_ok());
}

#[tokio::test]
async fn transfers_are_limited_for_one_call_and_for_all() {
    let slow = [Step::Wait(Duration::from_millis(50)), Step::Send(ok(PNG))];
    let server = Server::new().at("/a.png", slow);
    let log = server.log();
    let script = Script::example(server).await;
    let fetcher = script.fetcher(FetchSources::Public);
    let budget = Budget::new(1 << 20);
    let mut urls = vec!["http://example.com/a.png".to_owned(); 20];
    urls[3] = "http://example.com/missing".to_owned();
    urls[7] = "http://10.0.0.1/".to_owned();
    let photos = fetcher.fetch_all(urls.clone(), &budget).await;
    let failed: Vec<usize> = (0..20).filter(|index| photos[*index].is_err()).collect();
    assert_eq!(failed, [3, 7], "each has its own result");
    assert!(log.most_open() <= MAX_TRANSFERS_OF_ONE, "{}", log.most_open());
    let all = (0..8).map(|_| {
        let (fetcher, budget, urls) = (fetcher.clone(), budget.clone(), urls.clone());
        tokio::spawn(async move { fetcher.fetch_all(urls, &budget).await })
    });
    for call in all.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap().iter().filter(|photo| photo.is_ok()).count(), 18);
    }
    let most = log.most_open();
    assert!((MAX_TRANSFERS_OF_ONE + 1..=MAX_TRANSFERS).contains(&most), "{most}");
}

#[tokio::test]
async fn waiting_for_a_place_ends() {
    let server = Server::new().at("/stuck", [Step::Hold]).image("/a.png");
    let script = Script::example(server).await;
    let fetcher = script.fetcher_within(FetchSources::Public, SHORT);
    let held = fetcher.inner.transfers.try_acquire_many(MAX_TRANSFERS as u32).unwrap();
    let budget = Budget::new(1000);
    let error = fetcher.fetch("http://example.com/a.png", &budget).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    assert!(error.retry_after().is_some());
    // What can never be fetched does not wait.
    let refused = fetcher.fetch("file:///etc/passwd", &budget).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidParameter);
    drop(held);
    assert!(fetcher.fetch("http://example.com/a.png", &budget).await.is_ok());
}
