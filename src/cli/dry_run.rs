//! `--dry-run`, which the commands that change the phase have in common.

use super::Failure;
use super::client::Client;
use crate::migration::preview::Preview;

/// Shows what going to the phase `to`, or `start`, would come to. Changes nothing; fails as the request would be
/// refused.
pub(super) async fn dry_run(client: &Client, to: &str) -> Result<(), Failure> {
    let preview: Preview = client.get(&format!("/preview/{to}")).await?;
    let verdict = if preview.done { "would" } else { "would not" };
    say!("it {verdict} be done now: {}", preview.why);
    if !preview.consequences.is_empty() {
        say!("what would happen:");
    }
    for line in &preview.consequences {
        say!("  {line}");
    }
    say!("nothing was changed");
    if preview.done {
        Ok(())
    } else {
        Err(Failure::Refused(preview.why))
    }
}
