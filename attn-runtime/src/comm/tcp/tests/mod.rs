mod frames;
mod links;
mod stores;
mod strangers;

use std::net::TcpListener;
use std::thread::scope;
use std::time::Duration;

use crate::comm::Place;

/// The places of so many ranks of this machine, at a port that is free.
fn places(size: usize) -> Vec<Place> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = |rank| {
        let mut place = Place::new(rank, size).unwrap();
        place.master_port = Some(port);
        place
    };
    (0..size).map(at).collect()
}

/// Runs `body` for every place, each on a thread of its own: the outcomes, by place.
fn on_all<R: Send>(places: &[Place], body: impl Fn(&Place) -> R + Sync) -> Vec<R> {
    scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = places.iter().map(|place| scope.spawn(move || body(place))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
