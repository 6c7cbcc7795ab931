// The order of a queue: keys in a B+ tree whose leaves are linked.
//
// A request that comes anywhere in a queue of a million touches a leaf and a few inner nodes, and
// those that go from its front share one leaf: a tree with a node for every key would miss the
// caches a dozen times for each. Nodes come from a pool that all queues share; pointers to them
// decide nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/time.h"
#include "engine/slot_map.h"

namespace infersched::engine {

// A request's place in its queue: priority level, then deadline, then arrival.
struct QueueKey {
    std::uint32_t level = 0;
    std::uint32_t slot = kNoSlot;  // of the request; not part of the order
    Nanos deadline = kNever;
    std::uint64_t sequence = 0;

    bool operator<(const QueueKey& other) const {
        if (__builtin_expect(level != other.level, 0)) return level < other.level;
        if (__builtin_expect(deadline == other.deadline, 0)) return sequence < other.sequence;
        return deadline < other.deadline;
    }
};

// Keys of which the first `sorted` are in order. What comes between the ends of a queue is only
// added: it is put in order when the leaf is looked at, mostly when it has become the first. Small
// queues have one leaf of a few keys.
struct QueueLeaf {
    static constexpr std::uint32_t kSmall = 7;
    static constexpr std::uint32_t kLarge = 63;

    std::uint32_t count = 0;
    std::uint32_t sorted = 0;
    std::uint32_t capacity = 0;
    QueueLeaf* previous = nullptr;
    QueueLeaf* next = nullptr;

    QueueKey* keys() { return reinterpret_cast<QueueKey*>(this + 1); }
    const QueueKey* keys() const { return reinterpret_cast<const QueueKey*>(this + 1); }
    void sort() {
        if (sorted < count) sort_all();
    }
    void sort_all();
};

// The keys of children[i] are not below firsts[i] and below firsts[i + 1]; firsts[0] says nothing.
struct QueueInner {
    static constexpr std::uint32_t kCapacity = 40;

    std::uint32_t count = 0;
    std::uint64_t ranks[kCapacity];  // of firsts, near each other: enough to find most places
    QueueKey firsts[kCapacity];
    void* children[kCapacity];  // QueueLeaf on the lowest level, else QueueInner

    // The child that `key` belongs to.
    std::uint32_t find(const QueueKey& key) const;
    void insert(std::uint32_t place, const QueueKey& first, void* child);
    void erase(std::uint32_t place);
    // Moves the children of `other` from `begin` on to the end of this one.
    void take_from(QueueInner& other, std::uint32_t begin);
};

// Nodes out of use, so that queues in steady state allocate nothing. Memory is bounded by the most
// nodes that were in use at once.
class QueueNodes {
  public:
    QueueLeaf* take_leaf(std::uint32_t capacity);
    QueueInner* take_inner();
    void give_back(QueueLeaf* leaf);
    void give_back(QueueInner* inner);

  private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    // Nodes of one size.
    struct Blocks {
        std::vector<std::unique_ptr<void, Free>> slabs;
        std::vector<void*> spare;
        std::size_t taken = 0;  // together, in use or not
    };

    void* take_block(std::size_t bytes, Blocks& blocks);

    Blocks small_leaves_;
    Blocks large_leaves_;
    Blocks inners_;
};

class QueueOrder {
  public:
    // In order, sorting the leaves that it comes to. Valid until the next insert or erase.
    class Iterator {
      public:
        Iterator() = default;
        Iterator(QueueLeaf* leaf, std::uint32_t index) : leaf_(leaf), index_(index) {}
        const QueueKey& operator*() const { return leaf_->keys()[index_]; }
        const QueueKey* operator->() const { return &leaf_->keys()[index_]; }
        Iterator& operator++();
        Iterator& operator--();
        bool operator==(const Iterator& other) const {
            return leaf_ == other.leaf_ && index_ == other.index_;
        }
        bool operator!=(const Iterator& other) const { return !(*this == other); }

      private:
        QueueLeaf* leaf_ = nullptr;
        std::uint32_t index_ = 0;
    };

    bool empty() const { return size_ == 0; }
    std::size_t size() const { return size_; }
    const QueueKey& front() const { return first_->keys()[0]; }
    const QueueKey& back() const { return last_->keys()[last_->count - 1]; }
    Iterator begin() const { return {first_, 0}; }
    Iterator end() const { return {last_, last_ == nullptr ? 0 : last_->count}; }
    // The first key that is not below `key`, and the first one above it.
    Iterator lower_bound(const QueueKey& key) const;
    Iterator upper_bound(const QueueKey& key) const;

    // A key that is not there yet.
    void insert(QueueNodes& nodes, const QueueKey& key);
    // A key that is there.
    void erase(QueueNodes& nodes, const QueueKey& key);
    // Whether the nodes hold what the order says.
    bool consistent() const;

  private:
    static constexpr std::uint32_t kHeightMax = 16;

    // The way from the root to a leaf.
    struct Path {
        QueueInner* inner[kHeightMax];
        std::uint32_t child[kHeightMax];
        QueueLeaf* leaf;
    };

    QueueLeaf* find_leaf(const QueueKey& key) const;
    Path find_path(const QueueKey& key) const;
    Iterator at(QueueLeaf* leaf, std::uint32_t index) const;
    void sort_ends();
    void insert_into(QueueLeaf* leaf, const QueueKey& key);
    QueueLeaf* split(QueueNodes& nodes, const Path& path, const QueueKey& key);
    void add_child(QueueNodes& nodes, const Path& path, QueueKey first, void* child);
    void join_leaves(QueueNodes& nodes, const QueueKey& key);
    void join_inners(QueueNodes& nodes, const Path& path, std::uint32_t depth);
    void drop_leaf(QueueNodes& nodes, QueueLeaf* leaf);
    void lower_root(QueueNodes& nodes);
    std::size_t count_keys(void* node, std::uint32_t height, const QueueKey* below) const;

    void* root_ = nullptr;        // QueueLeaf when height_ is 0
    QueueLeaf* first_ = nullptr;  // always sorted, as the last one
    QueueLeaf* last_ = nullptr;
    std::uint32_t height_ = 0;  // inner nodes above a leaf
    std::size_t size_ = 0;
};

inline QueueOrder::Iterator& QueueOrder::Iterator::operator++() {
    if (++index_ == leaf_->count && leaf_->next != nullptr) {
        leaf_ = leaf_->next;
        leaf_->sort();
        index_ = 0;
    }
    return *this;
}

inline QueueOrder::Iterator& QueueOrder::Iterator::operator--() {
    if (index_ == 0) {
        leaf_ = leaf_->previous;
        leaf_->sort();
        index_ = leaf_->count;
    }
    --index_;
    return *this;
}

}  // namespace infersched::engine
