//! Where rank 0 listens, and where others find each rank.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};

use crate::comm::Place;
use crate::error::{Error, Result};

/// As errors call it.
pub(super) const MEETING: &str = "the place where ranks meet";

/// Where the ranks of a world meet.
#[derive(Clone, Debug)]
pub(super) struct Meeting {
    host: String,
    port: u16,
    several_machines: bool,
}

impl Meeting {
    pub(super) fn of(place: &Place) -> Result<Self> {
        let (host, port) = place.meeting()?;
        Ok(Self { host, port, several_machines: place.several_machines() })
    }

    /// Its addresses now: a name may be known only once rank 0's machine is up.
    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = (host, self.port).to_socket_addrs()?.collect();
        if addresses.is_empty() { Err(ErrorKind::NotFound.into()) } else { Ok(addresses) }
    }

    /// Listens there, on rank 0. On all addresses of this machine only if ranks are on others too and the one that was given
    /// is not this machine's own, as that of a service may be, or a name that means 127.0.0.1 here and something else there.
    pub(super) fn listen(&self) -> Result<TcpListener> {
        let unavailable = |why: String, cure: &str| Error::Unavailable {
            what: MEETING,
            why: format!("rank 0 cannot listen at {self}: {why}"),
            cure: cure.into(),
        };
        let addresses = self.addresses().map_err(|error| {
            unavailable(
                format!("the name has no address ({error})"),
                "set `ATTN_MASTER_ADDR` to the name or address of rank 0's machine, on every rank",
            )
        })?;
        let literal = self.host.parse::<IpAddr>().is_ok() || self.host == "localhost";
        let mut bound = Err(ErrorKind::NotFound.into());
        for address in addresses {
            let everywhere = match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let elsewhere = self.several_machines && address.ip().is_loopback() && !literal;
            bound = if elsewhere {
                TcpListener::bind((everywhere, self.port))
            } else {
                match TcpListener::bind(address) {
                    Err(error) if self.several_machines && error.kind() == ErrorKind::AddrNotAvailable => {
                        TcpListener::bind((everywhere, self.port))
                    }
                    bound => bound,
                }
            };
            if bound.is_ok() {
                break;
            }
        }
        bound.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => unavailable(
                "the port is in use".into(),
                "choose another one with `ATTN_MASTER_PORT`, on every rank, or see which program has it \
                 (perhaps a former run that has not ended)",
            ),
            ErrorKind::AddrNotAvailable => unavailable(
                "the address is not this machine's".into(),
                "is rank 0 on the machine that `ATTN_MASTER_ADDR` names?",
            ),
            _ => unavailable(error.to_string(), "choose another port with `ATTN_MASTER_PORT`, on every rank"),
        })
    }
}

impl core::fmt::Display for Meeting {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.host.contains(':') && !self.host.starts_with('[') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The address of this machine that others reach, given the one from which it talks to rank 0. That is the one, unless it
/// is 127.0.0.1 because rank 0 is on this machine, and others are elsewhere: then the one that the system would take to talk
/// to the world.
pub(super) fn reachable(own: IpAddr, place: &Place) -> IpAddr {
    if !own.is_loopback() || !place.several_machines() {
        return own;
    }
    let outward = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // An address kept for documents (RFC 5737). Nothing is sent: a route is chosen.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    outward().unwrap_or(own)
}
