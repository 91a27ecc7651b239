//! A private server of PostgreSQL, for tests.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use tempfile::TempDir;

/// The owner of the server if the tests are run by root, for whom it does not start: nobody.
const NOBODY: u32 = 65534;

/// A server on a Unix socket in a folder of its own. It ends when it is dropped.
pub(crate) struct Server {
    folder: TempDir,
    programs: PathBuf,
    process: Option<Child>,
}

impl Server {
    /// Starts a server; `None`, with the reason on standard error, if this machine has none.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            // Not a macro, whose output the harness would keep.
            let reason =
                "skipped: this machine has no PostgreSQL server (Debian's package postgresql)";
            let _ = writeln!(std::io::stderr(), "{reason}");
            return None;
        };
        // Not in TMPDIR, whose path may be too long for a socket.
        let folder = TempDir::new_in("/tmp").unwrap();
        if is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut server = Self { folder, programs, process: None };
        let mut init = server.command("initdb");
        init.args(["--auth=trust", "--username=cutline", "--encoding=UTF8", "--no-locale"]);
        let made = init.arg("--no-sync").arg("-D").arg(server.data()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.run();
        Some(server)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder.path()).env("LC_ALL", "C").stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts the server, also again after [`kill`](Self::kill).
    pub(crate) fn run(&mut self) {
        let end = Instant::now() + Duration::from_secs(120);
        let mut process = self.spawn();
        while let Err(error) = Client::connect(&self.address("postgres"), NoTls) {
            assert!(Instant::now() < end, "the server does not answer: {error}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
            // Processes that were killed may still have had its memory.
            if process.try_wait().unwrap().is_some() {
                process = self.spawn();
            }
        }
        self.process = Some(process);
    }

    fn spawn(&self) -> Child {
        let log = self.folder.path().join("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-c", "listen_addresses=", "-c", "max_connections=200"]);
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends all of its processes at once, without any chance to write something.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // The processes for connections are children of the first one, which would start others.
        let children = children(process.id());
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = Command::new("kill").arg("-KILL").args(children).stderr(Stdio::null()).status();
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
    }

    /// The address of a database.
    pub(crate) fn address(&self, database: &str) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://cutline:secret@{folder}/{database}")
    }

    /// The address of a new database.
    pub(crate) fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        self.address(name)
    }

    pub(crate) fn client(&self, database: &str) -> Client {
        Client::connect(&self.address(database), NoTls).unwrap()
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) {
        self.client(database).batch_execute(sql).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<String> {
    let stat = |folder: fs::DirEntry| fs::read_to_string(folder.path().join("stat")).ok();
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(stat);
    let child = |stat: String| {
        // The name of the program may have spaces.
        let number = stat.split(' ').next()?.to_owned();
        let of = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
        (of == parent.to_string()).then_some(number)
    };
    all.filter_map(child).collect()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The folder of the newest server.
fn programs() -> Option<PathBuf> {
    let has = |folder: &Path| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file());
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        debian.map(|version| version.path().join("bin")).filter(|folder| has(folder)).collect();
    found.sort_by_key(|folder| {
        let version = folder.parent().and_then(Path::file_name).unwrap_or_default();
        version.to_string_lossy().parse::<u32>().unwrap_or(0)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.pop().or_else(|| std::env::split_paths(&path).find(|folder| has(folder)))
}
