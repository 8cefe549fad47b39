//! `segue rejects`

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::{Admin, Failure};

/// List the keys that the new store cannot take, or the old one cannot give
///
/// They hold the switch back. Change or delete them through the proxy, and in the old store itself what
/// cannot be read there (a row without a value, two rows with one key), then run `segue verify`, which
/// tries them again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  segue rejects --json")]
pub(super) struct Rejects {
    #[command(flatten)]
    admin: Admin,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl Rejects {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let rejects: Vec<Value> = Client::new(&self.admin).get("/rejects").await?;
        if self.json {
            say!("{}", Value::from(rejects));
            return Ok(());
        }
        for reject in &rejects {
            let text = |name: &str| reject[name].as_str().unwrap_or_default().to_owned();
            say!("{}: {}", text("key"), text("reason"));
        }
        if rejects.is_empty() {
            say!("none");
        }
        Ok(())
    }
}
