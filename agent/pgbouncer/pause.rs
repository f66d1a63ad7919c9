//! Pauses of one pooler: begun so that they end, whatever happens to us.

use super::WorkerConfig;
use super::console::{Console, Standing, about, scoped, set};
use super::guard::Guard;
use super::pauses::{self, Entry, Journal, said};
use super::release::let_go;
use crate::files::Disk;
use crate::session::{Asked, Session, SessionError};
use futures_util::future::{join_all, try_join_all};
use pgsquire_core::effect::{Pause, PauseScope};
use pgsquire_core::topology::Endpoint;
use std::path::PathBuf;
use std::task::Poll;
use std::time::{Duration, Instant};

/// A refusal of PAUSE comes at once. It was written before the answer to a question that was asked later, so this is
/// only for the way through our own runtime.
const REFUSED_WITHIN: Duration = Duration::from_millis(1);

/// PgBouncer has a command before it for so long at most, while its console answers.
const TAKEN_WITHIN: Duration = Duration::from_millis(250);

const MIN_POOL_SIZE: &str = "min_pool_size";

/// Who pauses.
pub(super) struct Pauser {
    pooler: String,
    console: String,
    password_file: Option<PathBuf>,
    journal: Journal,
    guard: Guard,
    /// What the journal says, in case that it cannot be read any more.
    known: Option<Entry>,
    /// Connections whose PAUSE is not answered, for as long as the pause is ours.
    waiting: Vec<Asked>,
}

/// Why a pause was not begun, and what of it is to be undone.
struct NotPaused {
    why: String,
    taken: Vec<PauseScope>,
}

impl Pauser {
    pub fn new(config: &WorkerConfig, guard: Guard) -> Self {
        Pauser {
            pooler: config.pooler.clone(),
            console: config.console.clone(),
            password_file: config.password_file.clone(),
            journal: Journal::new(&config.state_dir, &config.pooler),
            guard,
            known: None,
            waiting: Vec::new(),
        }
    }

    /// A pause of an earlier run goes on, and must have a guard: the one of before may have died with the agent.
    pub async fn take_over(&mut self, disk: &mut Disk) {
        if let Ok(Some(_)) = self.read(disk).await
            && let Err(why) = self.guard.ensure()
        {
            tracing::warn!("the pause of pooler {} is unguarded: {why}", self.pooler);
        }
    }

    /// Drives what waits for an answer, and waits for the end of a guard that we started. Returns when one of them ended.
    pub async fn watch(&mut self) {
        let waiting = &mut self.waiting;
        let ended = std::future::poll_fn(|cx| {
            let before = waiting.len();
            waiting.retain_mut(|asked| asked.poll_ended(cx).is_pending());
            if waiting.len() < before { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            () = ended => {}
            () = self.guard.ended() => {}
        }
    }

    /// Journals a pause, sees that there is a guard, and pauses.
    pub async fn begin(
        &mut self,
        console: &mut Console,
        disk: &mut Disk,
        pause: Pause,
    ) -> Result<(), String> {
        // Everybody waits for a planned pause: PgBouncer is asked while it opens the connections.
        let sessions = try_join_all(parts(&pause.scope).iter().map(|_| console.another()));
        let (old, standing, sessions) = tokio::join!(self.read(disk), console.standing(), sessions);
        let (old, standing, sessions) = (old?, standing.map_err(text)?, sessions.map_err(text)?);
        self.may_pause(&pause.scope, &standing, old.as_ref())?;
        let entry = self.entry(pause, old.as_ref());
        self.write(disk, entry.clone()).await?;
        let not_begun = |why| NotPaused { why, taken: Vec::new() };
        let begun = match self.guard.ensure() {
            Ok(()) => self.pause(console, sessions, &entry, old.as_ref()).await,
            Err(why) => Err(not_begun(why)),
        };
        match begun {
            Ok(()) => self.forget_before(console, disk, entry).await,
            Err(failed) => {
                let NotPaused { why, taken } = failed;
                match self.undo(console, disk, &entry, old, &taken).await {
                    Ok(()) => Err(why),
                    Err(more) => Err(format!(
                        "{why}; and what was begun could not be undone: {more}; the guard ends it, or `pgsquire release`"
                    )),
                }
            }
        }
    }

    /// Somebody else's pause is not ours to take part in: we would end it.
    fn may_pause(&self, scope: &PauseScope, standing: &Standing, old: Option<&Entry>) -> Result<(), String> {
        let pooler = &self.pooler;
        let of_process = old.is_some_and(Entry::has_process);
        if standing.process == Some(true) && !of_process {
            return Err(format!(
                "pooler {pooler} is paused by somebody else: left alone until it is resumed"
            ));
        }
        let PauseScope::Databases(list) = scope else { return Ok(()) };
        for name in list {
            match standing.databases.iter().find(|database| database.name == *name) {
                // PAUSE would make it from a `*` entry.
                None => {
                    return Err(format!(
                        "pooler {pooler} has no database {name}: SHOW DATABASES does not list it"
                    ));
                }
                Some(found) if found.paused && !old.is_some_and(|old| old.names(name)) => {
                    return Err(format!(
                        "database {name} of pooler {pooler} is paused by somebody else: left alone until it is resumed"
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The entry of a pause that begins while an old one may be on.
    fn entry(&self, mut pause: Pause, old: Option<&Entry>) -> Entry {
        let mut before: Vec<PauseScope> = old.map(Entry::scopes).unwrap_or_default();
        before.retain(|scope| *scope != pause.scope);
        // With a pause of ours on, the value in force is our own 0.
        if pause.min_pool_size.as_deref().is_none_or(|value| value == "0")
            && let Some(kept) = old.and_then(|old| old.pause.min_pool_size.clone())
        {
            pause.min_pool_size = Some(kept);
        }
        Entry {
            pooler: self.pooler.clone(),
            boot_id: pauses::boot_id(),
            console: self.console.clone(),
            password_file: self.password_file.clone(),
            pause,
            before,
        }
    }

    async fn pause(
        &mut self,
        console: &mut Console,
        sessions: Vec<Session>,
        entry: &Entry,
        old: Option<&Entry>,
    ) -> Result<(), NotPaused> {
        let not_begun = |e: SessionError| NotPaused { why: e.to_string(), taken: Vec::new() };
        if entry.pause.min_pool_size.is_some() {
            console.run(&set(MIN_POOL_SIZE, "0")).await.map_err(not_begun)?;
        }
        let mut taken = Vec::new();
        let mut asked = Vec::new();
        let mut why = None;
        for (part, session) in parts(&entry.pause.scope).into_iter().zip(sessions) {
            taken.push(part.clone());
            match session.send(&scoped("PAUSE", &part)).await {
                Ok(sent) => asked.push((part, sent)),
                Err(e) => why = why.or(Some(e.to_string())),
            }
        }
        let sent_at = Instant::now();
        let standing = loop {
            let standing = console.standing().await;
            let answers = join_all(asked.iter_mut().map(|(_, sent)| sent.answer(REFUSED_WITHIN))).await;
            for ((part, sent), answer) in std::mem::take(&mut asked).into_iter().zip(answers) {
                match answer {
                    Ok(Some((_, Err(refused)))) => {
                        taken.retain(|taken| *taken != part);
                        if !is_ours_already(&part, &refused, old) {
                            why = why.or(Some(refused.to_string()));
                        }
                    }
                    Ok(Some((_, Ok(_)))) => {}
                    Ok(None) => asked.push((part, sent)),
                    Err(e) => why = why.or(Some(e.to_string())),
                }
            }
            // PgBouncer mostly takes commands in the order of their arrival, but between connections it need not.
            let not_yet = standing.as_ref().is_ok_and(|found| missing(&entry.pause.scope, found).is_some());
            if !not_yet || why.is_some() || sent_at.elapsed() >= TAKEN_WITHIN {
                break standing;
            }
        };
        self.waiting.extend(asked.into_iter().map(|(_, sent)| sent));
        why = why.or(match standing {
            Ok(standing) => missing(&entry.pause.scope, &standing),
            Err(e) => Some(e.to_string()),
        });
        // What an earlier pause of ours says stays paused.
        taken.retain(|part| !old.is_some_and(|old| covers(old, part)));
        why.map_or(Ok(()), |why| Err(NotPaused { why, taken }))
    }

    /// Closing a console undoes nothing: what was taken is resumed from another one.
    async fn undo(
        &mut self,
        console: &mut Console,
        disk: &mut Disk,
        entry: &Entry,
        old: Option<Entry>,
        taken: &[PauseScope],
    ) -> Result<(), String> {
        if old.is_none() {
            self.waiting.clear();
        }
        console.resume_all(taken).await.map_err(text)?;
        let kept = old.as_ref().and_then(|old| old.pause.min_pool_size.as_ref());
        if let (Some(value), None) = (&entry.pause.min_pool_size, kept) {
            console.give_back(MIN_POOL_SIZE, value).await.map_err(text)?;
        }
        match old {
            Some(old) => self.write(disk, old).await,
            None => self.remove(disk).await,
        }
    }

    /// What an earlier pause had and the new one has not: only now, so that no client slipped through in between.
    async fn forget_before(
        &mut self,
        console: &mut Console,
        disk: &mut Disk,
        mut entry: Entry,
    ) -> Result<(), String> {
        if entry.before.is_empty() {
            return Ok(());
        }
        let gone: Vec<PauseScope> = entry
            .before
            .iter()
            .flat_map(parts)
            .filter(|part| !parts(&entry.pause.scope).contains(part))
            .collect();
        console.resume_all(&gone).await.map_err(text)?;
        entry.before.clear();
        self.write(disk, entry).await
    }

    /// Journals another end.
    pub async fn extend(&mut self, disk: &mut Disk, pause: Pause) -> Result<(), String> {
        let mut entry = self.ours(disk).await?;
        entry.pause.until = pause.until;
        entry.pause.cause = pause.cause;
        self.write(disk, entry).await?;
        self.guard.ensure()
    }

    /// A RELOAD gave back the file's value: that is now the one to give back.
    pub async fn zero(&mut self, console: &mut Console, disk: &mut Disk) -> Result<(), String> {
        let entry = self.ours(disk).await?;
        self.borrow_min_pool_size(console, disk, entry).await.map(|_| ())
    }

    async fn borrow_min_pool_size(
        &mut self,
        console: &mut Console,
        disk: &mut Disk,
        mut entry: Entry,
    ) -> Result<Entry, String> {
        let now = console.setting(MIN_POOL_SIZE).await.map_err(text)?.unwrap_or_default();
        if now.is_empty() || now == "0" {
            return Ok(entry);
        }
        if entry.pause.min_pool_size.as_ref() != Some(&now) {
            entry.pause.min_pool_size = Some(now);
            self.write(disk, entry.clone()).await?;
        }
        console.run(&set(MIN_POOL_SIZE, "0")).await.map_err(text)?;
        Ok(entry)
    }

    /// Cuts what still has links to these endpoints; the pause stays.
    pub async fn cut(
        &mut self,
        console: &mut Console,
        disk: &mut Disk,
        databases: Vec<String>,
        stale: &[Endpoint],
    ) -> Result<(), String> {
        if console.cuts_clients().await.map_err(text)? {
            return console.cut_clients(&databases, stale).await.map_err(text);
        }
        let doomed = console.stale(&databases, stale).await.map_err(text)?;
        if doomed.is_empty() {
            return Ok(());
        }
        let entry = self.ours(disk).await?;
        let loaded = console.standing().await.map_err(text)?.databases;
        let known = |name: &String| loaded.iter().any(|database| database.name == *name);
        let mut commands: Vec<String> = doomed.iter().map(|name| about("KILL", name)).collect();
        if entry.has_process() {
            // KILL is refused under a pause of the process. A pause by database needs min_pool_size = 0.
            let mut entry = self.borrow_min_pool_size(console, disk, entry).await?;
            let kept: Vec<String> = databases.into_iter().filter(known).collect();
            let paused = kept.iter().filter(|name| !doomed.contains(name)).map(|name| about("PAUSE", name));
            commands.extend(paused);
            commands.insert(0, "RESUME".into());
            entry.pause.scope = PauseScope::Databases(kept);
            entry.before = vec![PauseScope::Process];
            self.write(disk, entry.clone()).await?;
            self.waiting.clear();
            self.in_one_write(console, &commands).await?;
            entry.before.clear();
            return self.write(disk, entry).await;
        }
        self.in_one_write(console, &commands).await
    }

    /// PgBouncer runs what came in one piece before it serves any client: nobody slips through between RESUME and what
    /// pauses again.
    async fn in_one_write(&mut self, console: &mut Console, commands: &[String]) -> Result<(), String> {
        let session = console.another().await.map_err(text)?;
        let mut asked = session.send(commands).await.map_err(text)?;
        let mut refused = None;
        loop {
            match asked.answer(crate::session::DEADLINE).await.map_err(text)? {
                Some((_, answer)) => {
                    if let Err(e) = super::console::resumed(answer) {
                        refused = refused.or(Some(e.to_string()));
                    }
                }
                None => break,
            }
            // PAUSE of a database with links elsewhere may be answered late, if ever; it was taken with the others.
            if asked.next().is_none_or(|next| next.starts_with("PAUSE")) {
                break;
            }
        }
        if asked.next().is_some_and(|next| !next.starts_with("PAUSE")) {
            return Err(format!(
                "{} was silent while asked for {}",
                super::console_name(&self.pooler),
                commands.join("; ")
            ));
        }
        self.waiting.push(asked);
        refused.map_or(Ok(()), Err)
    }

    /// Ends what the journal says.
    pub async fn end(&mut self, console: &mut Console, disk: &mut Disk) -> Result<(), String> {
        self.waiting.clear();
        let Some(entry) = self.read(disk).await? else { return Ok(()) };
        let_go(console, &entry).await.map_err(text)?;
        self.remove(disk).await
    }

    async fn ours(&mut self, disk: &mut Disk) -> Result<Entry, String> {
        let found = self.read(disk).await?;
        found.ok_or_else(|| format!("no pause of ours is on at pooler {}: it has ended", self.pooler))
    }

    /// The journal is right also when it differs from what we know: the guard may have ended the pause.
    async fn read(&mut self, disk: &mut Disk) -> Result<Option<Entry>, String> {
        let journal = self.journal.clone();
        match disk.run(move || journal.read()).await {
            Ok(entry) => self.known = entry,
            // What was written there we know ourselves.
            Err(why) => match self.known.clone() {
                Some(known) => self.write(disk, known).await?,
                None => return Err(why),
            },
        }
        Ok(self.known.clone())
    }

    async fn write(&mut self, disk: &mut Disk, entry: Entry) -> Result<(), String> {
        let (journal, written) = (self.journal.clone(), entry.clone());
        self.known = Some(entry);
        disk.run(move || journal.write(&written)).await
    }

    async fn remove(&mut self, disk: &mut Disk) -> Result<(), String> {
        let journal = self.journal.clone();
        disk.run(move || journal.remove()).await?;
        self.known = None;
        Ok(())
    }
}

/// A scope as its single commands.
fn parts(scope: &PauseScope) -> Vec<PauseScope> {
    match scope {
        PauseScope::Process => vec![PauseScope::Process],
        PauseScope::Databases(list) => {
            list.iter().map(|name| PauseScope::Databases(vec![name.clone()])).collect()
        }
    }
}

fn covers(entry: &Entry, part: &PauseScope) -> bool {
    entry.scopes().iter().flat_map(parts).any(|other| other == *part)
}

/// The process is paused already, and the journal says by whom.
fn is_ours_already(part: &PauseScope, refused: &SessionError, old: Option<&Entry>) -> bool {
    let already = matches!(refused, SessionError::Refused { message, .. } if message.contains("already suspended/paused"));
    *part == PauseScope::Process && already && old.is_some_and(Entry::has_process)
}

/// What was to be paused and is not.
fn missing(scope: &PauseScope, standing: &Standing) -> Option<String> {
    let is_paused = |part: &PauseScope| match part {
        PauseScope::Process => standing.process != Some(false),
        PauseScope::Databases(list) => standing.databases.iter().any(|d| d.paused && list.contains(&d.name)),
    };
    let part = parts(scope).into_iter().find(|part| !is_paused(part))?;
    Some(format!("PAUSE was sent, and {} is not paused", said(&part)))
}

fn text(e: SessionError) -> String {
    e.to_string()
}
