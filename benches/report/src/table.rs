//! What was measured, for the terminal and for docs/performance.md.

use std::{fmt, path::Path};

use plotters::prelude::*;

/// A table with a name, and plots of it.
pub struct Table {
    name: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
    plots: Vec<Plot>,
    note: String,
}

/// Some columns over another one, which is logarithmic.
pub struct Plot {
    /// Of the file, below docs/performance.
    pub file: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Column of the horizontal axis.
    pub x: usize,
    /// Columns, with their names in the plot.
    pub lines: Vec<(usize, &'static str)>,
    /// Only rows that begin with this.
    pub only: Option<&'static str>,
}

/// One figure.
#[derive(Clone)]
pub struct Cell {
    text: String,
    value: f64,
}

impl Cell {
    /// A cell of text, which no plot shows.
    pub fn text(text: &str) -> Self {
        Self { text: text.to_owned(), value: f64::NAN }
    }

    /// A whole number.
    pub fn count(count: usize) -> Self {
        Self { text: count.to_string(), value: count as f64 }
    }

    /// Per second.
    pub fn rate(rate: f64) -> Self {
        let digits = format!("{rate:.0}");
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
        Self { text: groups.join(" "), value: rate }
    }

    /// A number with so many decimal digits.
    pub fn number(number: f64, digits: usize) -> Self {
        Self { text: format!("{number:.digits$}"), value: number }
    }

    /// Of a hundred.
    pub fn percent(share: f64) -> Self {
        Self { text: format!("{:.0} %", 100.0 * share), value: share }
    }

    /// How many times as large one figure is as another.
    pub fn factor(factor: f64) -> Self {
        Self { text: format!("{factor:.2} x"), value: factor }
    }
}

impl Table {
    /// A table without rows; `head` has the names of the columns.
    pub fn new(name: &'static str, head: &[&str]) -> Self {
        let head = head.iter().map(|&column| column.to_owned()).collect();
        Self { name, head, rows: Vec::new(), plots: Vec::new(), note: String::new() }
    }

    /// The same table with a note on what it compares with, such as a version.
    pub fn with_note(mut self, note: String) -> Self {
        self.note = note;
        self
    }

    /// The note; empty if there is none.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The same table with one more plot.
    pub fn with_plot(mut self, plot: Plot) -> Self {
        self.plots.push(plot);
        self
    }

    /// Shown at once too: a whole table takes minutes.
    pub fn push(&mut self, row: Vec<Cell>) {
        let text: Vec<&str> = row.iter().map(|cell| cell.text.as_str()).collect();
        eprintln!("{}: {}", self.name, text.join(" | "));
        self.rows.push(row);
    }

    /// Name of the table, which the page marks its place with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Draws the plots; in Markdown, the pictures.
    pub fn draw(&self, dir: &Path) -> Result<String, String> {
        let mut pictures = String::new();
        for plot in &self.plots {
            self.draw_one(plot, &dir.join(plot.file)).map_err(|error| format!("{}: {error}", plot.file))?;
            pictures += &format!("\n![{}](performance/{})\n", plot.title, plot.file);
        }
        Ok(pictures)
    }

    fn draw_one(&self, plot: &Plot, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .filter(|row| plot.only.is_none_or(|only| row.first().is_some_and(|cell| cell.text == only)))
            .collect();
        let line = |column: usize| -> Vec<(f64, f64)> {
            let point = |row: &&Vec<Cell>| Some((row.get(plot.x)?.value, row.get(column)?.value));
            rows.iter().filter_map(point).collect()
        };
        let points: Vec<_> = plot.lines.iter().flat_map(|(column, _)| line(*column)).collect();
        let greatest = |values: &mut dyn Iterator<Item = f64>| values.fold(1.0, f64::max);
        let x_max = greatest(&mut points.iter().map(|point| point.0));
        let y_max = 1.1 * greatest(&mut points.iter().map(|point| point.1));
        let area = SVGBackend::new(path, (720, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(plot.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d((1.0..x_max).log_scale(), 0.0..y_max)?;
        let whole = |value: &f64| format!("{value:.0}");
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.head[plot.x].as_str()).x_label_formatter(&whole).y_label_formatter(&whole);
        mesh.light_line_style(TRANSPARENT).draw()?;
        for (number, (column, name)) in plot.lines.iter().enumerate() {
            let colour = Palette99::pick(number).stroke_width(2);
            let series = LineSeries::new(line(*column), colour).point_size(3);
            chart
                .draw_series(series)?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft);
        labels.background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    }
}

/// In Markdown, with columns in line.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |row: &Vec<Cell>, column: usize| row.get(column).map_or("", |cell| &cell.text).to_owned();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| cell(row, column).chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let line = |cells: Vec<String>| -> String {
            let padded =
                cells.iter().enumerate().map(|(column, text)| format!(" {text:>0$} |", width(column)));
            format!("|{}", padded.collect::<String>())
        };
        writeln!(f, "{}", line(self.head.clone()))?;
        let dashes = (0..self.head.len()).map(|column| format!("{}:|", "-".repeat(width(column) + 1)));
        writeln!(f, "|{}", dashes.collect::<String>())?;
        for row in &self.rows {
            writeln!(f, "{}", line((0..self.head.len()).map(|column| cell(row, column)).collect()))?;
        }
        Ok(())
    }
}
