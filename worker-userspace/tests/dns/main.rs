//! Steering's DNS server between applications and resolvers, over real sockets on the loopback interface.

mod dnsmasq;
mod lifecycle;
mod support;
mod tcp;
mod udp;
