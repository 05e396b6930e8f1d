//! The level of the log, which changes while the program runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::{EnvFilter, Registry, reload::Handle};

use crate::config::log_filter;

/// The filter of the process, and the directives that it had at the start.
struct Level {
    filter: Handle<EnvFilter, Registry>,
    setting: String,
    /// Lets one change pass at a time, so that the log names them in their order.
    changes: Mutex<()>,
}

static LEVEL: OnceLock<Level> = OnceLock::new();

/// A filter with directives that were checked.
pub(super) fn filter(directives: &str) -> EnvFilter {
    EnvFilter::new(directives)
}

/// Makes the filter of the process known to [`set_level`].
pub(super) fn install(filter: Handle<EnvFilter, Registry>, directives: &str) {
    let _ = LEVEL.set(Level { filter, setting: directives.to_owned(), changes: Mutex::new(()) });
}

/// Changes what is logged until the program ends: to `directives`, or to the setting if they are empty. Returns the directives that
/// are in effect.
///
/// # Errors
/// A directive is wrong, and nothing is changed. The reason says which one.
pub(crate) fn set_level(directives: &str) -> Result<String, String> {
    let level = LEVEL.get().ok_or("this program does not log")?;
    set(level, directives.trim())
}

fn set(level: &Level, directives: &str) -> Result<String, String> {
    if directives.len() > DIRECTIVES_BYTES_MAX {
        return Err(format!("the directives have more than {DIRECTIVES_BYTES_MAX} bytes"));
    }
    let (directives, origin) = match directives {
        "" => (level.setting.clone(), "the setting"),
        directives => (log_filter(directives)?, "an operator"),
    };
    let filter = EnvFilter::try_new(&directives).map_err(|error| error.to_string())?;
    let _change = level.changes.lock().unwrap_or_else(PoisonError::into_inner);
    // The message appears if the filter before or after the change lets it pass.
    let is_told = tracing::enabled!(tracing::Level::INFO);
    let tell = || tracing::info!(directives, origin, "the level of the log changes");
    if is_told {
        tell();
    }
    level.filter.reload(filter).map_err(|error| error.to_string())?;
    if !is_told {
        tell();
    }
    Ok(directives)
}

/// Maximum bytes of directives: a filter is matched against every place in the code that logs.
const DIRECTIVES_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use tracing_subscriber::{layer::SubscriberExt, reload};

    use super::*;

    #[test]
    fn level_changes_and_returns_to_the_setting_and_wrong_directives_change_nothing() {
        let (layer, handle) = reload::Layer::new(filter("warn"));
        let level = Level { filter: handle, setting: "warn".to_owned(), changes: Mutex::new(()) };
        let shown = || level.filter.with_current(ToString::to_string).unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!(set(&level, "debug").as_deref(), Ok("debug"));
            assert_eq!(shown(), "debug");
            let error = set(&level, "verbose").unwrap_err();
            assert!(error.contains("`verbose` is neither a level"), "{error}");
            assert!(set(&level, &"info,".repeat(1000)).unwrap_err().contains("4096 bytes"));
            assert_eq!(shown(), "debug");
            assert_eq!(set(&level, "").as_deref(), Ok("warn"));
            assert_eq!(shown(), "warn");
        });
    }
}
