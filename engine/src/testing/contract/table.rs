//! The tables of clauses: module, name (of the function and of the test), statement.

/// Calls `$callback!` with `$arguments` and the table.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_blob_store_clause {
    ($callback:ident $arguments:tt) => {
        $crate::$callback! { $arguments
            keys keys_have_1_to_1024_bytes "keys of 1 and of 1024 bytes are good, empty and longer ones are `InvalidKey`";
            keys keys_are_arbitrary_bytes "any bytes make a key, and keys are ordered bytewise";
            keys keys_are_never_normalised "`a//b`, `../x`, a trailing `/` are ordinary: no two keys are the same blob";
            put a_blob_of_no_bytes_is_a_blob "a zero-length blob is legal, has size 0, takes no payload block, and is not absent";
            put put_replaces_under_a_new_version "a put on an existing key replaces it atomically, under a larger version and another ETag";
            put stat_tells_all_without_payload "stat tells size, allocated bytes, ETag, version, digests, times and attributes, and they outlive a reopen";
            put put_replaces_attributes_and_digests "attributes, digests and creation time are those of the last put, never merged with older ones";
            put attributes_are_limited "attributes beyond their limits are `InvalidArgument` and nothing changes; up to the limits they are kept";
            put more_replicas_are_asked_for "a put may ask for more replicas than the store's number, and copies and renames keep what it asked for; fewer, none or more than 64 are `InvalidArgument` and nothing changes";
            put a_declared_size_is_held_to "a payload of another size than declared is `SizeMismatch`, and nothing is visible";
            put a_declared_digest_is_held_to "a payload of another digest than declared is `DigestMismatch`, and nothing is visible; a right one is kept";
            put too_large_a_blob_is_refused "a blob above the maximum size is `TooLarge`, and nothing changes";
            put payloads_may_lie_anywhere_in_memory "a payload needs no alignment";
            put versions_ascend_over_all_keys "a change has a larger version than every change of any key that was acknowledged before it, also after a reopen";
            put absent_is_not_found "get, get_stream and stat of an absent key are `NotFound(key)`; exists is false";
            delete delete_of_an_absent_key_succeeds "deleting an absent key succeeds and says `existed: false`";
            delete strict_delete_of_an_absent_key_fails "deleting an absent key strictly is `NotFound`";
            delete delete_is_conditional "a delete whose precondition does not hold is `PreconditionFailed` with the actual ETag, and nothing changes";
            delete what_is_deleted_is_gone "a deleted blob is gone from get, stat, exists and list, and stays gone";
            delete a_key_that_comes_again_has_new_versions "a key put again after its deletion has versions larger than any of its earlier life";
            preconditions put_is_conditional "put: if absent, if ETag, if version, each both ways";
            preconditions put_stream_is_conditional "put_stream: if absent, if ETag, if version, each both ways";
            preconditions batch_is_conditional "puts in a batch: if absent, if ETag, if version, each both ways";
            preconditions batch_deletes_are_conditional "deletes in a batch: if absent, if ETag, if version, each both ways";
            preconditions copy_is_conditional "copy: conditions on source and target, each both ways; an absent source is `NotFound`";
            preconditions rename_is_conditional "rename: conditions on source and target, each both ways; an absent source is `NotFound`";
            preconditions get_is_conditional "get and get_stream: if ETag, if version; an absent key is `NotFound`";
            preconditions put_stream_is_decided_at_finish "the precondition of a stream is decided when it finishes, not when it is opened";
            ranges get_reads_ranges "get of a range: half-open, clamped to the end; `a..a` is empty up to the size; past it, or more at the end of what is not empty, `InvalidRange`; backwards `InvalidArgument`";
            ranges get_stream_reads_ranges "get_stream of a range: half-open, clamped to the end; `a..a` is empty up to the size; past it, or more at the end of what is not empty, `InvalidRange`; backwards `InvalidArgument`";
            stream put_stream_takes_any_size_in_any_pieces "a streamed blob is the concatenation of its pieces, its size known or not";
            stream put_stream_pieces_need_not_be_awaited "pieces arrive in the order of the calls, awaited or not, their Ops kept or dropped";
            stream put_stream_shows_nothing_before_finish "nothing of a stream is visible before it finishes";
            stream a_dropped_stream_leaves_nothing "a stream that is dropped leaves nothing visible, now or after a reopen";
            stream failed_streams_give_their_space_back "the space of streams that are dropped, or refused at their end, is free again without a reopen";
            stream a_failing_source_leaves_nothing "a stream whose source fails leaves nothing visible";
            stream streams_to_one_key_do_not_mix "of several streams to a key each commits whole, and the later commit wins";
            stream a_running_reader_keeps_its_version "a running reader keeps the old bytes to its end when the key is overwritten, deleted, renamed or copied onto";
            stream get_stream_ends_and_stays_ended "a reader says what it reads, ends with `None`, and stays ended";
            stream streams_are_io_read_and_write "readers are `io::Read` and writers `io::Write`";
            list list_is_in_bytewise_order "list is ascending bytewise, each key once, in its current version";
            list list_holds_to_the_prefix "list(prefix) lists the keys that begin with it, and no others";
            list list_starts_after_a_key "start_after is exclusive, whether or not the key exists";
            list list_pages_hold_max_at_most "pages hold `max` at most, cover everything exactly once, and the last has no token; `max = 0` is an empty page";
            list list_groups_by_delimiter "a delimiter of one or more bytes groups common prefixes, each listed once; an empty one is `InvalidArgument`";
            list list_agrees_with_a_plain_scan "any prefix, start_after, delimiter and page size together list what a plain scan finds";
            list list_tokens_outlive_reopening_and_their_key "a token survives a reopen and the deletion of the key it names";
            list list_tokens_are_checked "a changed or made-up token is refused";
            list list_tokens_do_not_lead_out_of_the_prefix "a token of another listing does not list keys outside of the prefix";
            list a_key_that_lives_through_a_scan_appears_once "a key that lives through a whole scan appears exactly once, no key twice, whatever changes meanwhile";
            batch batch_does_all_its_items "a batch does all its items and tells the outcome of each";
            batch batch_is_all_or_nothing "a batch with an item that can't be done fails with that item's error and changes nothing";
            batch batch_items_happen_in_order "the items of a batch happen in order, and later ones see earlier ones";
            batch a_failed_batch_leaves_what_those_before_it_did "what was put before a batch that fails, of the same keys, is there for those behind it";
            batch a_failed_batch_leaves_nothing_to_those_behind_it "what is put, ranged or deleted right behind a batch that fails, before that is known, sees nothing of it";
            batch an_empty_batch_is_nothing "an empty batch succeeds and changes nothing";
            batch batches_may_be_large "thousands of items and many megabytes go into one batch";
            copy copy_makes_a_blob_of_its_own "a copy of any size has a version of its own and does not change with its source";
            copy copies_live_without_their_source "copies keep their bytes when the source and other copies are deleted and their space is used again";
            copy copy_and_rename_keep_what_is_known "copy and rename keep creation time, digests and attributes";
            copy rename_moves_a_blob "rename moves a blob of any size in one step, also onto an existing key";
            copy copy_and_rename_of_an_absent_key_fail "copy and rename of an absent key are `NotFound`, and nothing changes";
            copy copy_and_rename_to_itself_make_a_version "copy and rename of a key to itself make a new version of it";
            concurrency racing_puts_never_mix "when puts race all succeed, bytes never mix, the last version wins, and no reader sees versions go back";
            concurrency conditional_increments_are_never_lost "of increments under `IfVersion` or `IfETag` by many threads none is lost";
            concurrency one_of_many_ifabsent_wins "of many racing puts under `IfAbsent` exactly one wins";
            concurrency one_of_many_conditional_calls_wins "of racing calls of every kind under one precondition exactly one wins, and the others change nothing";
            concurrency a_batch_is_seen_whole "a reader sees all of a batch or nothing of it";
            concurrency a_rename_is_seen_whole "at every moment a renamed blob is in one of its two places";
            durability what_is_acknowledged_is_there_after_a_reopen "every acknowledged mutation is there after a reopen";
            durability flush_makes_written_durable "writes with `Durability::Written` are there after a flush and a reopen";
            durability a_durable_write_does_not_pass_a_written_one "a durable write is not undone by an older one that was only written";
            durability a_dropped_op_still_commits "a mutation whose Op is dropped commits; a flush covers it";
            durability a_dropped_op_never_lands_after_a_later_one "a mutation whose Op is dropped never lands after a later one on the same key";
            errors errors_tell_what_to_do "errors name the key they are about, and their kind and whether to try again fit what happened";
            ops ops_can_be_awaited_anywhere "ops can be awaited on any executor, one after the other or many at once";
            ops one_thread_submits_before_it_waits "one thread can have many operations under way before it waits for the first";
            ops ops_may_be_waited_for_on_another_thread "ops and streams can move to another thread";
        }
    };
}

/// Calls `$callback!` with `$arguments` and the table of `MutableObjectStore`.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_mutable_clause {
    ($callback:ident $arguments:tt) => {
        $crate::$callback! { $arguments
            put_range a_range_may_begin_and_end_anywhere "put_range replaces exactly the bytes of its range, at any alignment, under a new version";
            put_range put_range_keeps_what_is_not_of_the_bytes "put_range keeps attributes and creation time, and drops digests that were confirmed of other bytes";
            put_range what_changes_a_blob_keeps_its_replicas "puts of ranges and changes of attributes keep the number of replicas that was asked for, of holes as of bytes";
            put_range past_the_end_is_an_option "a range past the end is refused, extends the blob from its end, or leaves a hole, as asked";
            put_range an_absent_key_has_no_ranges "put_range on an absent key is `NotFound`, unless the blob was created with a size first";
            put_range as_many_bytes_as_the_range "bytes of another length than the range are `LengthMismatch`, and nothing changes";
            put_range an_empty_range_changes_nothing "an empty range succeeds and makes no new version";
            put_range put_range_is_conditional "put_range: if ETag, if version, each both ways";
            put_range a_range_that_is_too_large_is_refused "a range that makes the blob larger than the maximum is `TooLarge`, and nothing changes";
            put_range readers_see_all_of_a_range_or_nothing "a reader sees all new bytes of a range or all old ones, and a running reader its version to the end";
            put_range overlapping_ranges_are_whole "ranges put at once come to some order of whole writes";
            put_range copies_do_not_share_later_ranges "what is put into a blob is not put into its copies, nor the other way round";
            put_range many_small_ranges "any number of small ranges is read back right, now and after a reopen";
            put_range get_ranges_reads_many "get_ranges hands out many ranges of one version, in the order asked for, each clamped to the end";
            put_range get_ranges_is_conditional "get_ranges: if ETag, if version, each both ways; an absent key is `NotFound`";
            put_range holes_are_told_or_zeros "a read of a hole names what is missing, or hands out zeros, as asked; stat lists the holes";
            put_range created_blobs_are_one_hole "a blob created with a size is one hole, and is like any other";
            multipart nothing_shows_before_completion "nothing of an upload is visible under its key before it is completed";
            multipart a_completed_upload_is_its_parts "completing makes the blob that the named parts make in this order, whatever order they came in; the others are gone";
            multipart part_numbers_are_1_to_10_000 "parts have numbers 1 to 10,000, others are `InvalidPart`";
            multipart a_part_put_again_replaces_the_first "the later part of a number is the part, and the ETag of the older one no longer completes";
            multipart wrong_lists_leave_the_upload_open "parts out of order are `InvalidPartOrder`, parts that are not there or have another ETag `InvalidPart`; the upload stays usable";
            multipart completing_with_no_parts "an upload completed with no parts is an empty blob, or refused, as asked";
            multipart completing_again_is_the_same_answer "completing again with the same list is the same answer, also after a reopen; with another it is `NoSuchUpload`";
            multipart an_aborted_upload_is_gone "after an abort every call on the upload is `NoSuchUpload`, and nothing was visible";
            multipart uploads_to_one_key "of two uploads to one key the last that is completed wins";
            multipart completion_is_conditional "preconditions on the key are decided when an upload is completed; one that fails leaves it open";
            multipart replicas_of_an_upload_are_its_blobs "the number of replicas that an upload was begun with is that of its blob, whatever its parts ask for; one that can't be is `InvalidArgument`";
            multipart parts_are_held_to_what_is_declared "a part of another size or digest than declared is refused and not there";
            multipart parts_in_streams "a part may be a stream, of any size, in any pieces; a dropped one leaves nothing";
            multipart uploads_and_parts_are_listed "uploads and parts are listed in order, page by page, with their figures, also after a reopen";
            multipart old_uploads_are_swept "a sweep aborts the uploads that nothing was put into for so long, and tells what they had";
            tracker marking_is_a_union "mark_complete is an idempotent union, exact to the byte, and says what was new; it is there after a reopen";
            tracker pending_is_the_total_minus_what_is_complete "get_pending is the total minus what is complete; is_complete of size 0 is true; an unknown key is `NotFound`";
            tracker totals_stay "a total that is known stays, and no range lies past it";
            tracker compare_and_set_compares_sets "compare_and_set compares sets, whatever their pieces; a mismatch changes nothing and hands back set and generation; expecting nothing creates";
            tracker an_earlier_life_is_not_expected "a key that was deleted and comes again has another generation, and a compare_and_set from its old life fails";
            tracker blobs_are_tracked_by_what_is_written "the tracker of a blob follows puts, ranges, copies and uploads by itself";
            tracker nothing_unwritten_is_marked "bytes of a blob that were never written are not marked";
            tracker taken_away_bytes_are_holes "bytes of a blob that a compare_and_set takes away are holes at once";
            tracker no_update_is_lost "of many threads that claim by compare_and_set each claim is one thread's";
            tracker marks_of_many_threads_add_up "marks of many threads add up, and each byte is new once";
            tracker waiting_for_ranges "wait_for ends when all of the range is complete, or the key is gone";
            tracker observers_see_changes "an observer sees what is complete now, each time it is something else, and the end of the key";
            tracker what_is_elsewhere_is_apart "bytes held elsewhere are tracked apart from blobs of the same keys";
            manifest a_manifest_tells_what_a_blob_is_made_of "a manifest has entries that tile the blob, and what is confirmed and advertised of it; an absent key is `NotFound`";
            manifest blobs_are_made_of_others "a blob is made of ranges of others and of holes, and does not change with them";
            manifest a_blob_is_made_of_itself "a blob may be made of its own version before";
            manifest entries_that_do_not_tile_are_refused "entries that overlap, leave gaps or end elsewhere than the blob are `NotTiled`, and nothing changes";
            manifest manifests_replace_only_when_told "a manifest replaces a blob with a precondition that holds, or when told to; else it is `Exists`; what it is made of may be conditional, too";
            manifest what_is_not_there_makes_no_blob "bytes of an absent key, or past the end of a blob, are `Unavailable`, and nothing changes";
            manifest attributes_are_merged_replaced_or_removed "attributes are merged, replaced or removed under a new version, with who said so and when; payload, digests and creation time stay, and so does the version if nothing changes";
            manifest updates_of_attributes_are_checked "an update of an absent key is `NotFound`, one that contradicts itself or makes the attributes too many `InvalidArgument`, and nothing changes";
            manifest many_origins_are_kept "attributes keep who set them, however many did";
            manifest a_life_goes_on_through_updates "trackers of a blob, and who waits for them, do not see an update of its attributes";
            manifest a_new_life_begins_where_an_update_was "whatever makes a blob anew begins a new life of it, also where attributes were updated before";
            manifest one_of_many_conditional_manifests_wins "of racing manifests for an absent key, updates of one version, and manifests of one version exactly one wins";
            manifest updates_beside_ranges "updates beside ranges that are put lose neither the ones nor the others";
            manifest updates_of_many_threads_add_up "of updates by many threads none is lost";
            manifest manifests_are_listed_in_order "manifests are listed in the order of the keys, page by page, by prefix and delimiter, as blobs are";
            manifest a_dropped_manifest_op_still_commits "an update or a manifest whose Op is dropped commits, in the order of the calls";
            multipart attributes_of_an_upload_are_its_blobs "attributes given at the start are the blob's, and the limits are theirs";
        }
    };
}

/// Calls `$callback!` with `$arguments` and the table of `ReplicaIndex`.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_replica_clause {
    ($callback:ident $arguments:tt) => {
        $crate::$callback! { $arguments
            replica adding_a_replica_is_a_union "add_replica is an idempotent union of ranges for a blob's version in a sector, exact to the byte, and says what is there then";
            replica replicas_are_found_by_sector "find_replicas has all replicas of a blob in the order of the sectors, and no other blob's; an absent key is `NotFound`";
            replica only_what_is_known_has_replicas "an unknown sector is `UnknownSector` and tells which there are; an absent key is `NotFound`, a sector without a replica `NoReplica`";
            replica other_versions_are_refused "a generation that is older than the current one is `Stale`, one that never was `InvalidArgument`, and nothing changes";
            replica replicas_of_older_versions_do_not_count "whatever makes a new version of a blob leaves no replica of an older one that counts, in any answer, nor what was known against it";
            replica ranges_of_replicas_lie_within_the_blob "ranges that end past the end of the blob are `InvalidRange`, and nothing changes";
            replica holes_have_no_replicas "holes are in no replica, neither missing nor lost, and a replica without them is whole";
            replica a_blob_of_no_bytes_has_replicas "a zero-length blob has replicas like any other: whole ones, healthy or not";
            replica an_unhealthy_replica_is_kept "a replica that is marked is kept, with the first reason and its time, how often it was marked, and all damaged bytes; its repair is queued";
            replica damage_is_of_what_a_replica_has "a mark is of bytes that the replica has: if it names none of them, of all";
            replica health_comes_back_by_a_verify "a replica is healthy again once all of its damaged bytes are verified, and has no more bytes than before";
            replica health_comes_back_by_a_rewrite "a replica is healthy again once all of its damaged bytes are added anew";
            replica health_comes_back_by_nothing_else "reads, questions, other bytes, other sectors and other blobs leave an unhealthy replica as it is";
            replica status_counts_replicas "status tells the target, how many replicas there are, and how many are healthy and whole";
            replica status_tells_missing_and_lost_bytes "status tells the bytes with fewer good copies than the target, and those with none";
            replica status_agrees_with_counting_bytes "after any calls, replicas, health and status are what counting byte by byte finds";
            replica keys_in_a_sector_are_listed_in_order "keys_in_sector lists the blobs that have a replica in the sector, healthy or not, as list does: in order, page by page, by prefix and delimiter";
            replica a_key_that_stays_in_a_sector_appears_once "a key that lives in a sector through a whole walk appears exactly once, no key twice, whatever changes meanwhile";
            replica deleted_blobs_have_no_replicas "replicas go with their blob, also what was known against them; a batch that fails changes none";
            replica replicas_outlive_a_reopen "replicas that were added are there after a reopen, with their versions and ranges";
            replica what_many_threads_add_and_mark_adds_up "of what many threads add, mark and verify nothing is lost";
        }
    };
}
