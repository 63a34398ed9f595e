//! Steering against the real kernel: the programs are loaded, attached to cgroups that the tests make, and met
//! by processes that join them.
//!
//! The tests run one after the other in a network namespace of their own, which has the "remote" hosts' addresses
//! on its loopback: what is not steered really gets there. They need root and Linux 5.19, and fail without: older
//! kernels steer, but refuse with `EPERM` (see `dworker::steer::probe::Features`).
//! They are no `libtest` tests because the process must be in its namespace before it has threads, because the
//! same program is also the captured process ([`client`]), and because nobody else may run while the cost is measured.

#[path = "../alone/mod.rs"]
mod alone;
mod client;
mod cost;
mod dns;
mod lifetime;
mod pins;
mod tcp;
mod update;
mod world;

use std::process::ExitCode;

/// A list of functions with their names.
macro_rules! tests {
    ($($module:ident: $($name:ident)+;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),+),+]
    };
}

const TESTS: &[(&str, fn())] = tests! {
    tcp:
        a_captured_connection_reaches_the_forwarder_with_its_record
        only_rules_addresses_and_captured_processes_are_steered
        ipv6_and_v4_mapped_sockets_are_captured_too
        a_record_is_taken_once_and_only_the_kernel_makes_one
        a_connection_that_was_reset_before_it_was_accepted_does_not_take_its_ports_next_record
        a_socket_that_was_steered_before_does_not_lie_later
        a_connect_that_failed_leaves_nothing_that_lies_later
        ports_and_nested_prefixes_choose_the_rule
        what_is_down_fails_in_connect_with_its_own_errno
        synthetic_addresses_lead_to_names_and_nowhere_else
        without_our_listener_names_fail_closed_and_addresses_open
        a_bound_source_address_is_kept
        a_socket_bound_to_an_interface_is_not_sent_to_loopback
        fast_open_carries_data_in_the_first_packet
        multipath_sockets_are_captured_like_others
        another_network_namespace_is_left_alone
        a_connection_seen_by_a_child_and_its_parent_is_steered_once
        the_daemons_own_connections_are_left_alone;
    dns:
        a_connected_socket_asks_us_and_hears_the_resolver
        an_unconnected_socket_asks_us_and_hears_the_resolver
        one_socket_asks_several_resolvers_as_musl_does
        tcp_questions_have_records
        udp_and_tcp_share_the_resolvers_port
        without_a_spare_port_questions_go_where_they_were_sent
        a_port_that_is_not_ours_any_more_gets_no_questions
        other_ports_and_link_local_resolvers_are_left_alone
        questions_bound_to_an_interface_are_left_alone
        the_daemons_own_questions_are_left_alone
        another_network_namespace_asks_its_own_resolver
        racing_questions_agree_on_a_resolvers_port
        the_number_of_a_port_means_nothing_in_another_namespace
        a_child_and_its_parent_capture_a_question_once;
    lifetime:
        a_daemon_that_ends_releases_everything
        a_daemon_that_is_killed_releases_everything
        status_tells_programs_links_and_dead_cgroups
        three_capabilities_are_enough_and_a_missing_one_is_named
        cgroups_are_found_by_absolute_and_relative_paths
        tables_that_are_full_say_so_and_rules_can_be_removed;
    pins:
        what_a_killed_daemon_captured_is_adopted_by_the_next
        a_map_that_has_changed_takes_no_other_with_it
        nobody_is_unsteered_while_one_daemon_follows_another
        what_can_not_be_named_stays_attached
        the_id_of_a_daemon_that_has_ended_is_forgotten
        what_is_left_can_be_removed_without_a_daemon
        ports_for_resolvers_live_on_with_their_sockets
        excluded_users_and_cgroups_are_left_alone;
    update:
        nothing_is_switched_while_another_process_takes_over
        what_is_added_is_steered_and_what_is_removed_goes_direct
        a_name_that_is_removed_is_asked_of_its_resolver_again
        rules_are_replaced_under_live_traffic
        ten_thousand_rules_are_replaced_in_a_moment;
    cost:
        a_connection_costs_what_was_promised;
};

fn main() -> ExitCode {
    if client::is_wanted() {
        return client::serve();
    }
    alone::run(TESTS, world::enter)
}
