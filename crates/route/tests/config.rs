//! Files of routes, and what is refused.

use cutline_route::{Config, Kind, Privacy};

const BOX: &str = "[[backend]]\nname = \"box\"\nkind = \"ollama\"\nmodel = \"llava\"\n";
const ROUTE: &str = "[[route]]\nname = \"r\"\nbackends = [[\"box\"]]\n";

fn with(address: &str, more: &str, route: &str) -> Result<Config, String> {
    let file = format!("{BOX}base_url = \"{address}\"\n{more}\n{ROUTE}{route}");
    Config::parse(&file).map_err(|error| error.to_string())
}

#[test]
fn a_photo_leaves_the_machine_only_with_consent() {
    for address in ["http://127.0.0.1:1", "http://localhost/", "http://[::1]:1", "http://127.9.9.9"]
    {
        let config = with(address, "", "").unwrap();
        assert_eq!(config.backends[0].privacy, Privacy::Local, "{address}");
    }
    for address in
        ["http://192.168.1.2:11434", "https://api.example.com", "http://localhost.example"]
    {
        let error = with(address, "", "").unwrap_err();
        assert!(error.contains("allow_remote = true"), "{error}");
        let config = with(address, "", "allow_remote = true").unwrap();
        assert_eq!(config.backends[0].privacy, Privacy::Remote, "{address}");
        let error = with(address, "privacy = \"local\"", "allow_remote = true").unwrap_err();
        assert!(error.contains("another machine"), "{error}");
    }
    // A program on this machine that hands photos on.
    let error = with("http://127.0.0.1:4000", "privacy = \"remote\"", "").unwrap_err();
    assert!(error.contains("allow_remote = true"), "{error}");
}

#[test]
fn mistakes_are_named() {
    let ok = "http://127.0.0.1:1";
    for (address, more, route, says) in [
        ("ftp://127.0.0.1", "", "", "http://"),
        ("http://user:pass@127.0.0.1", "", "", "password"),
        ("http://127.0.0.1/?key=1", "", "", "?"),
        ("nonsense", "", "", "base_url"),
        (ok, "timeout_s = 0", "", "timeout_s"),
        (ok, "max_parallel = 0", "", "max_parallel"),
        (ok, "price = { per_image = -1.0 }", "", "prices"),
        (ok, "api_key_env = \"A\"\napi_key_file = \"b\"", "", "api_key_env"),
        (ok, "colour = 1", "", "line 6"),
        (ok, "", "deadline_s = 1e9", "deadline_s"),
        (ok, "", "retry = { attempts = 0 }", "attempts"),
        (ok, "", "escalate_below = 2.0", "escalate_below"),
        (ok, "", "match = { styles = [\"poem\"] }", "styles"),
        (ok, "", "match = { modles = [] }", "modles"),
        (ok, "", ROUTE, "two routes"),
        (ok, "", "[[route]]\nname = \"s\"\nbackends = [[\"bax\"]]", "bax"),
        (ok, "", "[[route]]\nname = \"s\"\nbackends = [[\"box\", \"box\"]]", "twice"),
        (ok, "", "[[route]]\nname = \"s\"\nbackends = [[]]", "without backends"),
        (ok, "", "[[route]]\nname = \"a b\"\nbackends = [[\"box\"]]", "letters"),
        (
            ok,
            "",
            "[[route]]\nname = \"s\"\nbackends = [[{name = \"box\", weight = 0.0}]]",
            "weights",
        ),
    ] {
        let error = with(address, more, route).expect_err(says);
        assert!(error.contains(says), "{says}: {error}");
    }
    let local = "[[backend]]\nname = \"l\"\nkind = \"local\"\nbase_url = \"http://127.0.0.1\"";
    assert!(Config::parse(local).unwrap_err().to_string().contains("no address"));
    assert!(Config::parse(&" ".repeat(300_000)).unwrap_err().to_string().contains("bytes"));
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = with("http://127.0.0.1:11434/", "", "").unwrap();
    let backend = &config.backends[0];
    assert_eq!((backend.kind, backend.base_url.as_str()), (Kind::Ollama, "http://127.0.0.1:11434"));
    assert_eq!((backend.max_parallel, backend.supports.len()), (8, 3));
    let route = &config.routes[0];
    assert_eq!((route.retry.attempts, route.overflow, route.default), (2, false, false));
    assert_eq!(Config::parse("").unwrap(), Config::default());
}
