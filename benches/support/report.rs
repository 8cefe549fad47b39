//! Figures next to their peers: a line as soon as each is known, a table and JSON at the end.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::args::Args;
use super::rounds::Series;

/// Everything that one benchmark measured.
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

/// One figure, its peer, and what was wished for.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// In what: `ops/s`, `keys/s`, `MB`.
    pub unit: &'static str,
    /// Whose figure it is.
    pub name: String,
    /// The figure.
    pub figure: f64,
    /// Whom it is compared with; nothing for a figure that is judged by itself.
    pub peer: Option<String>,
    /// The peer's figure.
    pub peer_figure: Option<f64>,
    /// Figure by peer's figure.
    pub ratio: Option<f64>,
    /// What was wished for: of the ratio if there is a peer, else of the figure.
    pub target: Option<Target>,
    /// Whether the wish is fulfilled.
    pub met: Option<bool>,
    /// What else is worth knowing.
    pub note: String,
}

/// A bound.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(name: &'static str) -> Self {
        println!("\n{name}");
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// A series against its peer's.
    pub fn compare(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: &Series,
        peer: &Series,
        target: Option<Target>,
        note: impl Into<String>,
    ) {
        let ratio = ours.ratio_to(peer);
        self.push(Row {
            what: what.into(),
            unit,
            name: ours.name.clone(),
            figure: ours.median(),
            peer: Some(peer.name.clone()),
            peer_figure: Some(peer.median()),
            ratio: Some(ratio),
            target,
            met: target.map(|target| target.holds(ratio)),
            note: note.into(),
        });
    }

    /// A series against each of its peers'.
    pub fn compare_each(
        &mut self,
        what: &str,
        unit: &'static str,
        ours: &Series,
        peers: &[Series],
        target: Option<Target>,
        note: &str,
    ) {
        for peer in peers {
            self.compare(what, unit, ours, peer, target, note);
        }
    }

    /// A figure that is judged by itself.
    pub fn single(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        name: impl Into<String>,
        figure: f64,
        target: Option<Target>,
        note: impl Into<String>,
    ) {
        self.push(Row {
            what: what.into(),
            unit,
            name: name.into(),
            figure,
            peer: None,
            peer_figure: None,
            ratio: None,
            target,
            met: target.map(|target| target.holds(figure)),
            note: note.into(),
        });
    }

    fn push(&mut self, row: Row) {
        println!("  {}", line(&row).join("  "));
        self.rows.push(row);
    }

    /// Prints the table and writes the JSON.
    pub fn finish(self, args: &Args) {
        let head = [
            "what", "who", "figure", "peer", "figure", "unit", "ratio", "target", "", "note",
        ];
        let mut table = vec![head.map(String::from)];
        table.extend(self.rows.iter().map(line));
        let widths: Vec<usize> = (0..head.len())
            .map(|column| {
                table
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        println!(
            "\n{}{}",
            self.name,
            if args.quick { " (smoke run)" } else { "" }
        );
        for row in &table {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column {
                    2 | 4 | 6 | 7 => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                })
                .collect();
            println!("  {}", cells.join("  ").trim_end());
        }
        let missed = self
            .rows
            .iter()
            .filter(|row| row.met == Some(false))
            .count();
        let judged = self.rows.iter().filter(|row| row.met.is_some()).count();
        println!("  {} of {judged} targets met", judged - missed);
        let path = args.json.clone().unwrap_or_else(|| {
            let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
            target.join(format!("{}.json", self.name))
        });
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).expect("a directory for the report");
        }
        let json = serde_json::json!({
            "benchmark": self.name,
            "quick": args.quick,
            "rounds": args.rounds(),
            "rows": self.rows,
        });
        fs::write(&path, format!("{json:#}\n")).expect("the report is written");
        println!("  as JSON: {}", path.display());
    }
}

fn line(row: &Row) -> [String; 10] {
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    [
        row.what.clone(),
        row.name.clone(),
        format!("{:.0}", row.figure),
        row.peer.clone().unwrap_or_default(),
        optional(row.peer_figure, 0),
        row.unit.to_owned(),
        optional(row.ratio, 2),
        match row.target {
            None => String::new(),
            Some(Target::AtLeast(bound)) => format!(">= {bound}"),
            Some(Target::AtMost(bound)) => format!("<= {bound}"),
        },
        match row.met {
            None => "",
            Some(true) => "met",
            Some(false) => "MISSED",
        }
        .to_owned(),
        row.note.clone(),
    ]
}
