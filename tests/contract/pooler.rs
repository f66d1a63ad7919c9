//! A PgBouncer of our own before a PostgreSQL, and the worker under test.

/// A PgBouncer before a PostgreSQL, and our worker.
pub struct World {
    pub dir: TempDir,
    pub server: Server,
    pub port: u16,
    pub bouncer: Option<Process>,
    pub worker: Worker,
    build: Build,
}

pub const SETTINGS: &str = "auth_type = trust\nserver_login_retry = 15\npool_mode = transaction\n";

impl World {
    pub async fn start(databases: &str, settings: &str) -> World {
        let server = Server::start().await;
        let dir = tempfile::Builder::new().prefix("console").tempdir().unwrap();
        crate::processes::give_to_postgres(dir.path());
        let port = free_port();
        let config = config(dir.path(), &format!("host=127.0.0.1 port={port} user=boss"));
        let worker = Worker::start(16, |orders, events, stop| pgbouncer::run(config, orders, events, stop));
        let mut world = World { dir, server, port, bouncer: None, worker };
        std::fs::write(world.path("users"), "\"boss\" \"secret\"\n\"postgres\" \"\"\n").unwrap();
        std::fs::write(world.path("p.ini"), world.ini(databases, settings)).unwrap();
        world.begin().await;
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn ini(&self, databases: &str, settings: &str) -> String {
        let dir = self.dir.path().display();
        format!(
            "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir = {dir}\n\
             auth_file = {dir}/users\nadmin_users = boss\n{settings}",
            self.port
        )
    }

    /// An entry that leads to the server.
    pub fn entry(&self, name: &str, host: &str) -> String {
        format!("{name} = host={host} port={} dbname=postgres\n", self.server.port)
    }

    pub async fn begin(&mut self) {
        let ini = self.path("p.ini");
        let bouncer = Process::start(As::Postgres, "pgbouncer", &[ini.to_str().unwrap()], &self.path("log"));
        self.bouncer = Some(bouncer);
        let port = self.port;
        until("PgBouncer listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
            .await;
    }

    pub fn signal(&self, signal: Signal) {
        self.bouncer.as_ref().unwrap().signal(signal);
    }

    pub async fn order(&mut self, order: PoolerOrder) -> Outcome {
        self.worker.outcome(Order::Pooler { pooler: "write".into(), order }).await
    }

    pub async fn done(&mut self, order: PoolerOrder) {
        let said = order.to_string();
        assert_eq!(self.order(order).await, Outcome::Done, "{said}");
    }

    pub async fn why_not(&mut self, order: PoolerOrder) -> String {
        match self.order(order).await {
            Outcome::Failed { why } => why,
            other => panic!("this cannot be: {other:?}"),
        }
    }

    pub async fn look(&mut self) -> ConsoleView {
        match self.order(PoolerOrder::Look).await {
            Outcome::Console(view) => view,
            other => panic!("{other:?}"),
        }
    }

    pub async fn files(&mut self) -> Files {
        match self.order(PoolerOrder::ReadFiles).await {
            Outcome::Files(files) => files,
            other => panic!("{other:?}"),
        }
    }

    pub async fn client(&self, database: &str) -> Client {
        connect(&format!("host=127.0.0.1 port={} user=postgres", self.port), database).await.unwrap()
    }
}

pub fn config(dir: &Path, console: &str) -> WorkerConfig {
    WorkerConfig {
        pooler: "write".into(),
        ini: dir.join("p.ini"),
        cwd: None,
        console: console.into(),
        password_file: None,
        state_dir: dir.join("state"),
    }
}

pub fn database<'a>(view: &'a ConsoleView, name: &str) -> &'a pgsquire_core::pgbouncer::console::LoadedDatabase {
    view.databases.iter().find(|d| d.name == name).unwrap_or_else(|| panic!("{name} is not in {view:?}"))
}

pub async fn answers(client: &Client) -> bool {
    timeout(PATIENCE, client.simple_query("SELECT 1")).await.expect("no answer").is_ok()
}

