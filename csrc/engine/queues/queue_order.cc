#include "engine/queues/queue_order.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/large_memory.h"

namespace infersched::engine {
namespace {

// Nodes that are taken at once: as many as there are, from so many to so many.
constexpr std::size_t kSlabBlocksMin = 32;
constexpr std::size_t kSlabBlocksMax = 4096;
// Fuller nodes are not joined: the next key would split them again.
constexpr std::uint32_t kJoinedLeafMax = QueueLeaf::kLarge - QueueLeaf::kLarge / 8;
constexpr std::uint32_t kJoinedInnerMax = QueueInner::kCapacity - QueueInner::kCapacity / 8;

// How many of `count` sorted keys are below `key`.
std::uint32_t keys_below(const QueueKey* keys, std::uint32_t count, const QueueKey& key) {
    std::uint32_t low = 0;
    while (count > 0) {
        const std::uint32_t half = (count + 1) / 2;
        low += half * static_cast<std::uint32_t>(keys[low + half - 1] < key);
        count -= half;
    }
    return low;
}

// The same of those that are not above it.
std::uint32_t keys_up_to(const QueueKey* keys, std::uint32_t count, const QueueKey& key) {
    std::uint32_t low = 0;
    while (count > 0) {
        const std::uint32_t half = (count + 1) / 2;
        low += half * static_cast<std::uint32_t>(!(key < keys[low + half - 1]));
        count -= half;
    }
    return low;
}

// Level and deadline in one word: of two keys the lower one has no higher rank. Levels are small
// numbers, with or without the highest bit; of others there is one rank.
std::uint64_t rank_of(const QueueKey& key) {
    constexpr std::uint32_t kOthers = 127;
    const std::uint64_t high = key.level >> 31;
    const std::uint32_t low = key.level & 0x7fff'ffff;
    if (low >= kOthers) return (high << 7 | kOthers) << 56;
    const auto since_first = static_cast<std::uint64_t>(key.deadline) ^ 1ull << 63;
    return (high << 7 | low) << 56 | since_first >> 8;
}

void prefetch_ranks(const void* inner) {
    constexpr std::size_t kLine = 64;
    const auto* bytes = static_cast<const char*>(inner);
    for (std::size_t line = 0; line < sizeof(QueueInner::ranks); line += kLine) {
        __builtin_prefetch(bytes + line);
    }
}

template <class T>
void open_gap(T* values, std::uint32_t count, std::uint32_t at) {
    std::memmove(values + at + 1, values + at, (count - at) * sizeof(T));
}

template <class T>
void close_gap(T* values, std::uint32_t count, std::uint32_t at) {
    std::memmove(values + at, values + at + 1, (count - at - 1) * sizeof(T));
}

template <class T>
void copy(T* to, const T* from, std::uint32_t count) {
    std::memcpy(to, from, count * sizeof(T));
}

}  // namespace

std::uint32_t QueueInner::find(const QueueKey& key) const {
    const std::uint64_t rank = rank_of(key);
    std::uint32_t child = 0;
    for (std::uint32_t left = count - 1; left > 0;) {
        const std::uint32_t half = (left + 1) / 2;
        child += half * static_cast<std::uint32_t>(ranks[child + half] < rank);
        left -= half;
    }
    while (child + 1 < count && ranks[child + 1] == rank && !(key < firsts[child + 1])) ++child;
    return child;
}

void QueueInner::insert(std::uint32_t place, const QueueKey& first, void* child) {
    open_gap(ranks, count, place);
    open_gap(firsts, count, place);
    open_gap(children, count, place);
    ranks[place] = rank_of(first);
    firsts[place] = first;
    children[place] = child;
    ++count;
}

void QueueInner::erase(std::uint32_t place) {
    close_gap(ranks, count, place);
    close_gap(firsts, count, place);
    close_gap(children, count, place);
    --count;
}

void QueueInner::take_from(QueueInner& other, std::uint32_t begin) {
    const std::uint32_t taken = other.count - begin;
    copy(ranks + count, other.ranks + begin, taken);
    copy(firsts + count, other.firsts + begin, taken);
    copy(children + count, other.children + begin, taken);
    count += taken;
    other.count = begin;
}

void* QueueNodes::take_block(std::size_t bytes, Blocks& blocks) {
    if (blocks.spare.empty()) {
        const std::size_t more = std::clamp(blocks.taken, kSlabBlocksMin, kSlabBlocksMax);
        blocks.slabs.emplace_back(take_memory(bytes * more, alignof(std::max_align_t)));
        auto* slab = static_cast<std::byte*>(blocks.slabs.back().get());
        for (std::size_t i = more; i-- > 0;) blocks.spare.push_back(slab + i * bytes);
        blocks.taken += more;
    }
    void* block = blocks.spare.back();
    blocks.spare.pop_back();
    return block;
}

QueueLeaf* QueueNodes::take_leaf(std::uint32_t capacity) {
    const std::size_t bytes = sizeof(QueueLeaf) + capacity * sizeof(QueueKey);
    void* block = take_block(bytes, capacity == QueueLeaf::kSmall ? small_leaves_ : large_leaves_);
    auto* leaf = new (block) QueueLeaf();
    leaf->capacity = capacity;
    return leaf;
}

QueueInner* QueueNodes::take_inner() {
    auto* inner = static_cast<QueueInner*>(take_block(sizeof(QueueInner), inners_));
    inner->count = 0;
    return inner;
}

void QueueNodes::give_back(QueueLeaf* leaf) {
    (leaf->capacity == QueueLeaf::kSmall ? small_leaves_ : large_leaves_).spare.push_back(leaf);
}

void QueueNodes::give_back(QueueInner* inner) { inners_.spare.push_back(inner); }

QueueLeaf* QueueOrder::find_leaf(const QueueKey& key) const {
    void* node = root_;
    for (std::uint32_t depth = 0; depth < height_; ++depth) {
        const auto& inner = *static_cast<QueueInner*>(node);
        node = inner.children[inner.find(key)];
    }
    return static_cast<QueueLeaf*>(node);
}

QueueOrder::Path QueueOrder::find_path(const QueueKey& key) const {
    Path path;
    void* node = root_;
    for (std::uint32_t depth = 0; depth < height_; ++depth) {
        path.inner[depth] = static_cast<QueueInner*>(node);
        path.child[depth] = path.inner[depth]->find(key);
        node = path.inner[depth]->children[path.child[depth]];
        if (depth + 1 < height_) prefetch_ranks(node);
    }
    path.leaf = static_cast<QueueLeaf*>(node);
    return path;
}

void QueueLeaf::sort_all() {
    constexpr std::uint32_t kFew = 8;
    QueueKey* all = keys();
    if (count - sorted > kFew) {
        std::sort(all, all + count);
        sorted = count;
        return;
    }
    for (; sorted < count; ++sorted) {
        const QueueKey key = all[sorted];
        const std::uint32_t place = keys_below(all, sorted, key);
        open_gap(all, sorted, place);
        all[place] = key;
    }
}

// Behind the last key of a leaf is the first one of the next.
QueueOrder::Iterator QueueOrder::at(QueueLeaf* leaf, std::uint32_t index) const {
    if (index < leaf->count || leaf->next == nullptr) return {leaf, index};
    leaf->next->sort();
    return {leaf->next, 0};
}

QueueOrder::Iterator QueueOrder::lower_bound(const QueueKey& key) const {
    if (empty()) return end();
    if (!(front() < key)) return begin();
    QueueLeaf* leaf = find_leaf(key);
    leaf->sort();
    return at(leaf, keys_below(leaf->keys(), leaf->count, key));
}

QueueOrder::Iterator QueueOrder::upper_bound(const QueueKey& key) const {
    if (empty() || back() < key) return end();
    QueueLeaf* leaf = find_leaf(key);
    leaf->sort();
    return at(leaf, keys_up_to(leaf->keys(), leaf->count, key));
}

void QueueOrder::insert_into(QueueLeaf* leaf, const QueueKey& key) {
    leaf->keys()[leaf->count++] = key;
    if (leaf == first_ || leaf == last_) leaf->sort();
}

void QueueOrder::sort_ends() {
    if (first_ == nullptr) return;
    first_->sort();
    last_->sort();
}

void QueueOrder::insert(QueueNodes& nodes, const QueueKey& key) {
    ++size_;
    if (root_ == nullptr) root_ = first_ = last_ = nodes.take_leaf(QueueLeaf::kSmall);
    // Deadlines mostly grow with time: the end is the usual place and costs no search.
    if (last_->count < last_->capacity && (last_->count == 0 || back() < key)) {
        last_->keys()[last_->count++] = key;
        ++last_->sorted;
        return;
    }
    const Path path = find_path(key);
    QueueLeaf* leaf = path.leaf;
    if (leaf->capacity == QueueLeaf::kSmall && leaf->count == leaf->capacity) {
        QueueLeaf* larger = nodes.take_leaf(QueueLeaf::kLarge);
        larger->count = larger->sorted = leaf->count;
        copy(larger->keys(), leaf->keys(), leaf->count);
        nodes.give_back(leaf);
        root_ = first_ = last_ = leaf = larger;  // small ones are alone
    }
    if (leaf->count == leaf->capacity) leaf = split(nodes, path, key);
    insert_into(leaf, key);
}

// Makes two leaves of a full one; the one that `key` belongs to.
QueueLeaf* QueueOrder::split(QueueNodes& nodes, const Path& path, const QueueKey& key) {
    QueueLeaf* left = path.leaf;
    left->sort();
    QueueLeaf* right = nodes.take_leaf(QueueLeaf::kLarge);
    // What only grows at its end is left full.
    const bool at_end = left == last_ && back() < key;
    const std::uint32_t kept = at_end ? left->count : left->count / 2;
    right->count = right->sorted = left->count - kept;
    copy(right->keys(), left->keys() + kept, right->count);
    left->count = left->sorted = kept;
    right->previous = left;
    right->next = left->next;
    (right->next == nullptr ? last_ : right->next->previous) = right;
    left->next = right;
    const QueueKey first = at_end ? key : right->keys()[0];
    add_child(nodes, path, first, right);
    return key < first ? left : right;
}

// Adds a node behind the one that the path leads to, splitting inner nodes that are full.
void QueueOrder::add_child(QueueNodes& nodes, const Path& path, QueueKey first, void* child) {
    for (std::uint32_t depth = height_; depth-- > 0;) {
        QueueInner* inner = path.inner[depth];
        std::uint32_t place = path.child[depth] + 1;
        QueueInner* into = inner;
        QueueInner* right = nullptr;
        QueueKey right_first;
        if (inner->count == QueueInner::kCapacity) {
            right = nodes.take_inner();
            const std::uint32_t kept = inner->count / 2;
            right->take_from(*inner, kept);
            right_first = right->firsts[0];
            if (place > kept) {
                into = right;
                place -= kept;
            }
        }
        into->insert(place, first, child);
        if (right == nullptr) return;
        first = right_first;
        child = right;
    }
    QueueInner* root = nodes.take_inner();
    root->insert(0, QueueKey(), root_);
    root->insert(1, first, child);
    root_ = root;
    ++height_;
}

void QueueOrder::erase(QueueNodes& nodes, const QueueKey& key) {
    QueueLeaf* leaf = first_;
    if (leaf->keys()[leaf->count - 1] < key) leaf = find_leaf(key);
    leaf->sort();
    close_gap(leaf->keys(), leaf->count, keys_below(leaf->keys(), leaf->count, key));
    --leaf->count;
    --leaf->sorted;
    --size_;
    if (height_ == 0) {
        if (leaf->count == 0) drop_leaf(nodes, leaf);
        return;
    }
    // Half empty nodes are looked at now and then: most have a neighbour that is too full to join.
    constexpr std::uint32_t kLook = QueueLeaf::kLarge / 8;
    if (leaf->count <= 2 * kLook && leaf->count % kLook == 0) join_leaves(nodes, key);
}

// Takes a leaf out of the list and out of use.
void QueueOrder::drop_leaf(QueueNodes& nodes, QueueLeaf* leaf) {
    (leaf->previous == nullptr ? first_ : leaf->previous->next) = leaf->next;
    (leaf->next == nullptr ? last_ : leaf->next->previous) = leaf->previous;
    if (height_ == 0) root_ = nullptr;
    nodes.give_back(leaf);
    sort_ends();
}

// Joins the leaf of `key` with a neighbour below the same inner node, or drops it when it is empty.
void QueueOrder::join_leaves(QueueNodes& nodes, const QueueKey& key) {
    const Path path = find_path(key);
    const std::uint32_t depth = height_ - 1;
    QueueInner* inner = path.inner[depth];
    std::uint32_t gone = path.child[depth];
    if (path.leaf->count > 0) {
        if (inner->count == 1) return;
        gone = std::max(gone, 1u);
        auto* left = static_cast<QueueLeaf*>(inner->children[gone - 1]);
        auto* right = static_cast<QueueLeaf*>(inner->children[gone]);
        if (left->count + right->count > kJoinedLeafMax) return;
        left->sort();
        right->sort();
        copy(left->keys() + left->count, right->keys(), right->count);
        left->count += right->count;
        left->sorted = left->count;
    }
    drop_leaf(nodes, static_cast<QueueLeaf*>(inner->children[gone]));
    inner->erase(gone);
    join_inners(nodes, path, depth);
}

// The same of the inner node at `depth`, which lost a child, and of those above it.
void QueueOrder::join_inners(QueueNodes& nodes, const Path& path, std::uint32_t depth) {
    for (; depth > 0; --depth) {
        QueueInner* inner = path.inner[depth];
        QueueInner* above = path.inner[depth - 1];
        std::uint32_t gone = path.child[depth - 1];
        if (inner->count > QueueInner::kCapacity / 4) break;
        if (inner->count > 0) {
            if (above->count == 1) break;
            gone = std::max(gone, 1u);
            auto* left = static_cast<QueueInner*>(above->children[gone - 1]);
            auto* right = static_cast<QueueInner*>(above->children[gone]);
            if (left->count + right->count > kJoinedInnerMax) break;
            const std::uint32_t joined = left->count;
            left->take_from(*right, 0);
            left->firsts[joined] = above->firsts[gone];
            left->ranks[joined] = above->ranks[gone];
        }
        nodes.give_back(static_cast<QueueInner*>(above->children[gone]));
        above->erase(gone);
    }
    lower_root(nodes);
}

void QueueOrder::lower_root(QueueNodes& nodes) {
    while (height_ > 0) {
        auto* root = static_cast<QueueInner*>(root_);
        if (root->count > 1) return;
        // A tree of no keys ends with its last leaf.
        root_ = root->count == 0 ? nullptr : root->children[0];
        height_ = root->count == 0 ? 0 : height_ - 1;
        nodes.give_back(root);
    }
}

// The keys below a node, all of them in order and below `below`; ~0: something is wrong.
std::size_t QueueOrder::count_keys(void* node, std::uint32_t height, const QueueKey* below) const {
    constexpr auto kWrong = ~std::size_t{0};
    if (height == 0) {
        auto& leaf = *static_cast<QueueLeaf*>(node);
        leaf.sort();
        for (std::uint32_t i = 1; i < leaf.count; ++i) {
            if (!(leaf.keys()[i - 1] < leaf.keys()[i])) return kWrong;
        }
        if (leaf.count == 0 || leaf.count > leaf.capacity) return kWrong;
        const bool last_fits = below == nullptr || leaf.keys()[leaf.count - 1] < *below;
        return last_fits ? leaf.count : kWrong;
    }
    const auto& inner = *static_cast<QueueInner*>(node);
    if (inner.count == 0 || inner.count > QueueInner::kCapacity) return kWrong;
    std::size_t keys = 0;
    for (std::uint32_t i = 0; i < inner.count; ++i) {
        const QueueKey* end = i + 1 < inner.count ? &inner.firsts[i + 1] : below;
        const std::size_t counted = count_keys(inner.children[i], height - 1, end);
        if (counted == kWrong) return kWrong;
        keys += counted;
    }
    return keys;
}

bool QueueOrder::consistent() const {
    if (empty()) return root_ == nullptr && first_ == nullptr && last_ == nullptr && height_ == 0;
    if (first_->sorted != first_->count || last_->sorted != last_->count) return false;
    if (count_keys(root_, height_, nullptr) != size_) return false;
    std::size_t listed = 0;
    const QueueLeaf* previous = nullptr;
    for (const QueueLeaf* leaf = first_; leaf != nullptr; leaf = leaf->next) {
        if (leaf->previous != previous) return false;
        if (previous != nullptr && !(previous->keys()[previous->count - 1] < leaf->keys()[0])) {
            return false;
        }
        listed += leaf->count;
        previous = leaf;
    }
    return previous == last_ && listed == size_;
}

}  // namespace infersched::engine
