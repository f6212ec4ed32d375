// Counts what devices say to each other without a room, one number after the other: what is lost, comes twice or overtakes is seen at
// once, where a room's keys may come in any order.
import { ClientEvent } from "matrix-js-sdk";

const kind = "org.example.count";

export class Post {
    #said = 0;
    #first = {}; // what the first number was for each device
    #heard = new Map(); // the last number of each device
    #total = 0;
    faults = [];

    follow(client) {
        client.on(ClientEvent.ToDeviceEvent, (event) => {
            if (event.getType() === "m.room.encrypted") {
                this.faults.push(`a message of ${event.getSender()} to this device can't be decrypted`);
            } else if (event.getType() === kind) {
                this.#hear(name(event.getSender(), event.getContent().device), event.getContent(), name(client.getUserId(), client.getDeviceId()));
            }
        });
        client.on(ClientEvent.SyncUnexpectedError, (error) => this.faults.push(`working on a /sync: ${error.stack}`));
    }

    #hear(device, { n, first }, self) {
        const want = this.#heard.has(device) ? this.#heard.get(device) + 1 : first[self];
        if (n !== want) {
            this.faults.push(`${device} has said ${n}, not ${want}`);
        }
        this.#heard.set(device, n);
        this.#total++;
    }

    /** Says the next number to other devices, each a user and a device ID. */
    async say(client, { devices }) {
        const n = ++this.#said;
        for (const device of devices) {
            this.#first[name(...device)] ??= n;
        }
        const to = devices.map(([userId, deviceId]) => ({ userId, deviceId }));
        await client.encryptAndSendToDevice(kind, to, { device: client.getDeviceId(), n, first: this.#first });
    }

    get heard() {
        return this.#total;
    }
}

const name = (user, device) => `${user} ${device}`;
