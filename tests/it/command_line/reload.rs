//! SIGHUP, after which the server reads its file of routes again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{cutline, photo};

const HERE: &str = "[[backend]]\nname = \"here\"\nkind = \"local\"\n";

fn route(name: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\nbackends = [[\"here\"]]\n")
}

/// A server that writes its log to a file, and ends with the test.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Waits until a line of the log says this.
    fn said(&self, words: &str) -> Value {
        let begin = Instant::now();
        loop {
            let log = fs::read_to_string(&self.log).unwrap();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let has =
                |line: &Value| line["message"].as_str().is_some_and(|text| text.contains(words));
            if let Some(line) = lines.find(has) {
                return line;
            }
            assert!(begin.elapsed() < Duration::from_secs(120), "{words}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    fn reads(&self, file: &Path, routes: &str) {
        fs::write(file, routes).unwrap();
        self.signal("-HUP");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hangup_replaces_the_routes_and_a_bad_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("routes.toml"), folder.path().join("log"));
    fs::write(&file, format!("{HERE}{}", route("one"))).unwrap();
    let mut command = cutline(&folder, &["serve", "--port", "0"]);
    command.env("ROUTES_FILE", &file).stdout(File::create(&log).unwrap()).stderr(Stdio::null());
    let server = Server { child: command.spawn().unwrap(), log };
    let line = server.said("listening on ");
    let address = line["message"].as_str().unwrap().strip_prefix("listening on ").unwrap();
    server.said("model ready in");
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let caption = |model: &str| {
        let photo = fs::read(photo("cat")).unwrap();
        let url = format!("{address}/caption/generate?model={model}");
        let mut answer =
            agent.post(url).header("content-type", "image/jpeg").send(&photo[..]).unwrap();
        let body = answer.body_mut().read_to_vec().unwrap();
        (answer.status().as_u16(), serde_json::from_slice::<Value>(&body).unwrap())
    };
    let served = |one: bool, two: bool| {
        for (name, there) in [("one", one), ("two", two)] {
            let (status, answer) = caption(name);
            assert_eq!(status, if there { 200 } else { 404 }, "{name}: {answer}");
            assert!(!there || answer["routing"]["route"] == name, "{answer}");
        }
    };
    served(true, false);

    server.reads(&file, &format!("{HERE}[[route]]\nname = \"two\"\nbackends = [[\"nobody\"]]\n"));
    let refused = server.said("the routes stay as they were");
    assert!(refused["error"].as_str().unwrap().contains("'nobody'"), "{refused}");
    served(true, false);

    server.reads(&file, &format!("{HERE}{}", route("two")));
    server.said("the routes in ROUTES_FILE are in use");
    served(false, true);
    server.signal("-TERM");
}
