// What a device could read of what was said in its rooms. It survives the clients of the device.
import { ClientEvent, MatrixEventEvent } from "matrix-js-sdk";

export class Reading {
    #read = new Set(); // event IDs
    #unread = new Map(); // the event as it came, and why it can't be read so far
    #client;

    /** Follows what a new client of the device is told and decrypts. */
    follow(client) {
        this.#client = client;
        client.on(ClientEvent.Event, (event) => this.#look(event));
        client.on(MatrixEventEvent.Decrypted, (event) => this.#look(event));
        for (const { raw } of [...this.#unread.values()]) {
            client.getEventMapper()(raw);
        }
    }

    /** Ends with the client. What it is told from now on waits for the next one. */
    rest() {
        this.#client = undefined;
    }

    /** Counts an event as read which the device has sent itself, so that it is never told the key. */
    own(id) {
        this.#read.add(id);
        this.#unread.delete(id);
    }

    /** Takes events that reach the device without the server. */
    tell(events) {
        for (const raw of events) {
            if (!this.#read.has(raw.event_id)) {
                this.#unread.set(raw.event_id, { raw, why: "not tried" });
                this.#client?.getEventMapper()(structuredClone(raw));
            }
        }
    }

    /** Tries again what can't be read, as when the user looks at it. */
    async tryAgain() {
        const crypto = this.#client.getCrypto();
        for (const { event } of [...this.#unread.values()]) {
            if (event?.isDecryptionFailure()) {
                await event.attemptDecryption(crypto, { isRetry: true });
            }
        }
    }

    #look(event) {
        const id = event.getId();
        if (event.getWireType() !== "m.room.encrypted" || this.#read.has(id)) {
            return;
        }
        if (event.getClearContent()?.body && !event.isDecryptionFailure()) {
            this.own(id);
        } else {
            this.#unread.set(id, { raw: this.#unread.get(id)?.raw ?? structuredClone(event.event), event, why: event.decryptionFailureReason ?? "not tried" });
        }
    }

    /** How many events could be read, and for each that could not the reason. */
    state() {
        return { read: this.#read.size, unread: Object.fromEntries([...this.#unread].map(([id, { why }]) => [id, why])) };
    }
}
