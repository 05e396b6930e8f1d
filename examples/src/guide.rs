//! The application of `docs/guide.md`.

use std::collections::BTreeMap;

use consensus_core::typed::Application;
use serde::{Deserialize, Serialize};

/// How many seats are left in each room.
#[derive(Default, Serialize, Deserialize)]
pub struct Seats(pub BTreeMap<String, u32>);

/// What clients propose.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Opens a room, or changes the number of its seats.
    Open {
        /// Name of the room.
        room: String,
        /// Number of seats that are left in it.
        seats: u32,
    },
    /// Takes one seat.
    Reserve {
        /// Name of the room.
        room: String,
    },
}

impl Application for Seats {
    type Command = Command;
    /// Seats left in the room; `None` if the command was refused.
    type Response = Option<u32>;

    fn apply(&mut self, command: Command) -> Option<u32> {
        match command {
            Command::Open { room, seats } => {
                self.0.insert(room, seats);
                Some(seats)
            }
            Command::Reserve { room } => {
                let left = self.0.get_mut(&room)?;
                *left = left.checked_sub(1)?;
                Some(*left)
            }
        }
    }
}
