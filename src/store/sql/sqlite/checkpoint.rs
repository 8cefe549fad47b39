//! Moves what was committed from the write-ahead log to the database, beside the writer.
//!
//! SQLite does it in the commit that makes the log long enough, for which everybody waits then: where
//! writes go to many pages, a quarter of all time. Here a thread does it on a connection of its own, while
//! the writer goes on. But the log begins anew only where all of it was moved. So pass follows pass, each
//! with what has come during the one before, and when little is left the writer moves that in its next
//! commit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB, Result};
use tracing::{debug, warn};

/// Frames in the log from which on they are moved: 64 MB of pages. A page that changed often meanwhile is
/// moved once.
pub(super) const FRAMES: i32 = 16_000;

/// What part of that is moved by the writer: a few milliseconds' work.
const FEW: i32 = 32;

/// At how many times that the writer waits for the thread.
const TOO_MANY: i32 = 8;

/// How often the whole log is tried to be moved when the store is closed.
const TRIES: usize = 5;

/// The thread, which ends when this is dropped.
pub(super) struct Checkpoints {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// Frames that are many.
    many: i32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Length of the log behind the latest commit, in frames.
    frames: i32,
    /// If the last attempt has left something, where the next one begins.
    again_at: i32,
    turn: Turn,
}

/// Who is to move frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Nobody,
    Thread,
    Writer,
    /// The store was closed.
    Over,
}

impl Checkpoints {
    /// Starts the thread on `conn`, and has each commit of `writer` tell it how long the log is. Frames are
    /// moved when there are `many`.
    pub(super) fn start(
        conn: Connection,
        writer: &mut Connection,
        many: i32,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            many,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("sqlite checkpoints".into())
            .spawn(move || of_thread.run(&conn))?;
        let of_writer = shared.clone();
        let hook = move |wal: &mut Wal, frames| {
            of_writer.committed(wal, frames);
            Ok(())
        };
        writer.wal_hook(Some(hook)).map_err(std::io::Error::other)?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread and moves everything; see [`all`].
    pub(super) fn finish(&self, writer: &Connection) {
        self.end();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        // SQLite does not wait for a pass that is under way: it refuses a second one at the same time.
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("what moves the write-ahead log to the database has ended by a fault of its own");
        }
        all(writer);
    }

    fn end(&self) {
        self.shared.lock().turn = Turn::Over;
        self.shared.changed.notify_all();
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// The writer has committed, and `frames` are in the log.
    fn committed(&self, wal: &mut Wal, frames: i32) {
        let mut state = self.lock();
        if frames < state.frames {
            // It has begun anew.
            state.again_at = 0;
        }
        state.frames = frames;
        if state.turn == Turn::Nobody && frames >= self.many.max(state.again_at) {
            state.turn = Turn::Thread;
            self.changed.notify_all();
        }
        while state.turn == Turn::Thread && frames >= self.many * TOO_MANY {
            state = self.wait(state);
        }
        if state.turn != Turn::Writer {
            return;
        }
        drop(state);
        // What this fails of, it fails of again in the thread, which says so.
        let moved = wal.checkpoint_v2(CheckpointMode::PASSIVE);
        debug!(?moved, frames, "the rest of the write-ahead log was moved");
        let mut state = self.lock();
        // It begins anew with the next transaction, unless somebody reads what was there before.
        state.again_at = frames + self.many / 4;
        state.turn = Turn::Nobody;
    }

    /// Moves frames when there are many, until the store is closed.
    fn run(&self, conn: &Connection) {
        loop {
            let mut state = self.lock();
            while !matches!(state.turn, Turn::Thread | Turn::Over) {
                state = self.wait(state);
            }
            if state.turn == Turn::Over {
                return;
            }
            drop(state);
            self.passes(conn);
        }
    }

    /// Moves frames until few are left, or not much fewer with each pass.
    fn passes(&self, conn: &Connection) {
        let mut left = i32::MAX;
        loop {
            let moved = pass(conn).unwrap_or_else(|err| {
                warn!("cannot move the write-ahead log to the database, will try again: {err}");
                0
            });
            let mut state = self.lock();
            let before = std::mem::replace(&mut left, state.frames - moved);
            if state.turn == Turn::Over {
                return;
            }
            if left <= self.many / FEW || left > before / 2 {
                state.turn = Turn::Writer;
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Nothing panics under this lock, so a poisoned one is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves what nobody who reads needs in the log; answers how many frames of it are moved now.
fn pass(conn: &Connection) -> Result<i32> {
    let (_, moved) = conn.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE)?;
    Ok(moved)
}

/// Moves everything and leaves an empty log, so that the file is complete without it. Waits for those who read
/// what was there before, a few times as long as the connection waits for anybody.
fn all(conn: &Connection) {
    let mut moved = Ok(());
    for _ in 0..TRIES {
        moved = conn
            .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::TRUNCATE)
            .map(drop);
        if moved.is_ok() {
            return;
        }
    }
    if let Err(err) = moved {
        warn!(
            "the write-ahead log cannot be moved to the database, so that the file is complete only with the \
             one beside it whose name ends with -wal: {err}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::*;

    const MANY: i32 = 64;

    fn connect(path: &Path) -> Connection {
        let conn = Connection::open(path).unwrap();
        conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")
            .unwrap();
        conn
    }

    /// A writer with an empty table, and what keeps its log short.
    fn start() -> (TempDir, PathBuf, Connection, Checkpoints) {
        start_with(MANY)
    }

    fn start_with(many: i32) -> (TempDir, PathBuf, Connection, Checkpoints) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let mut writer = connect(&path);
        let checkpoints = Checkpoints::start(connect(&path), &mut writer, many).unwrap();
        writer
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)")
            .unwrap();
        (dir, path, writer, checkpoints)
    }

    /// Commits, each of which adds a page or two to the log.
    fn commit(writer: &Connection, times: i32) {
        for _ in 0..times {
            writer
                .execute("INSERT INTO t (x) VALUES (zeroblob(3000))", [])
                .unwrap();
        }
    }

    fn count(conn: &Connection) -> i32 {
        conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    }

    /// How many frames there ever were at a time: the file does not shrink.
    fn most_frames(path: &Path) -> i32 {
        let log = path.with_extension("db-wal");
        i32::try_from(log.metadata().unwrap().len() / 4096).unwrap()
    }

    #[test]
    fn the_log_stays_short_while_the_writer_goes_on() {
        let (_dir, path, writer, checkpoints) = start();
        commit(&writer, 3000);
        let most = most_frames(&path);
        assert!(most < MANY * TOO_MANY + 10, "{most} frames");
        assert_eq!(count(&connect(&path)), 3000);
        drop((checkpoints, writer));
        assert_eq!(count(&connect(&path)), 3000);
    }

    #[test]
    fn in_the_end_the_file_is_complete_once_nobody_reads_what_was_there_before() {
        let (dir, path, writer, checkpoints) = start();
        commit(&writer, 50);
        let reader = connect(&path);
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(count(&reader), 50);
        commit(&writer, 50);
        writer
            .busy_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            reader.execute_batch("COMMIT").unwrap();
            reader
        });
        checkpoints.finish(&writer);
        assert_eq!(most_frames(&path), 0);
        let alone = dir.path().join("alone.db");
        std::fs::copy(&path, &alone).unwrap();
        assert_eq!(count(&connect(&alone)), 100);
        drop((ends.join().unwrap(), checkpoints));
    }

    #[test]
    fn a_pass_that_is_under_way_does_not_keep_the_file_from_being_complete() {
        for wait in 0..20 {
            let (_dir, path, writer, checkpoints) = start_with(1000);
            writer.execute_batch("BEGIN").unwrap();
            commit(&writer, 6000);
            writer.execute_batch("COMMIT").unwrap();
            assert_ne!(checkpoints.shared.lock().turn, Turn::Nobody);
            std::thread::sleep(std::time::Duration::from_micros(200 * wait));
            checkpoints.finish(&writer);
            assert_eq!(most_frames(&path), 0);
        }
    }

    #[test]
    fn what_is_left_is_moved_by_the_writer() {
        let (_dir, path, writer, checkpoints) = start();
        let state = || checkpoints.shared.lock();
        commit(&writer, 20);
        let before = state().frames;
        state().turn = Turn::Writer;
        commit(&writer, 1);
        assert_eq!(state().turn, Turn::Nobody);
        commit(&writer, 1);
        let frames = state().frames;
        assert!(frames < before, "{before}, then {frames} frames");
        assert_eq!(count(&connect(&path)), 22);
    }

    #[test]
    fn a_log_that_a_reader_holds_is_not_tried_at_every_commit() {
        let (_dir, path, writer, checkpoints) = start();
        let state = || checkpoints.shared.lock();
        commit(&writer, 10);
        let reader = connect(&path);
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(count(&reader), 10);
        // Commits until it is tried in vain; answers when it will be tried again.
        let tried = |before: i32| {
            for _ in 0..1000 {
                commit(&writer, 1);
                let state = state();
                if state.again_at > before {
                    assert_eq!(state.turn, Turn::Nobody);
                    return state.again_at;
                }
            }
            panic!("it is not tried");
        };
        let first = tried(0);
        assert!(first > MANY);
        commit(&writer, 1);
        assert_eq!(state().turn, Turn::Nobody);
        tried(first);
    }

    #[test]
    fn the_writer_does_not_wait_for_readers_and_the_log_begins_anew_behind_them() {
        let (_dir, path, writer, checkpoints) = start();
        commit(&writer, 10);
        let reader = connect(&path);
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(count(&reader), 10);
        commit(&writer, 1000);
        assert_eq!(count(&reader), 10);
        let held = most_frames(&path);
        assert!(held > MANY * TOO_MANY, "{held} frames");
        reader.execute_batch("COMMIT").unwrap();
        commit(&writer, 3000);
        let most = most_frames(&path);
        assert!(most < held + MANY * TOO_MANY, "{held}, then {most} frames");
        assert_eq!(count(&reader), 4010);
        drop(checkpoints);
    }
}
