// A device, from its login to its logout. It is online while it has a client.
import { createClient, Filter, SyncState } from "matrix-js-sdk";
import { Disk } from "./disk.js";
import { Post } from "./post.js";
import { Reading } from "./reading.js";
import * as rooms from "./rooms.js";
import { SASUser } from "./sas.js";
import * as secrets from "./secrets.js";
import { Transport } from "./transport.js";
import { until } from "./wait.js";

export class Device {
    #account; // what a client is made with
    #client;
    #transport;
    #disk = new Disk();
    #store;
    #reading = new Reading();
    #post = new Post();
    #sas = new SASUser();

    #commands = {
        login: (_, args) => this.#login(args),
        online: () => this.#online(),
        offline: () => this.#offline(),
        logout: (client) => this.#logout(client),
        create: rooms.create,
        join: rooms.join,
        knows: rooms.knows,
        send: async (client, args) => this.#reading.own(await rooms.send(client, args)),
        encrypt: rooms.encrypt,
        tell: (_, { events }) => this.#reading.tell(events),
        say: (client, args) => this.#post.say(client, args),
        state: () => ({ ...this.#reading.state(), heard: this.#post.heard, faults: this.#post.faults }),
        request: (client, args) => this.#sas.request(client, args),
        accept: (client, args) => this.#sas.accept(client, args),
        start: (client, args) => this.#sas.start(client, args),
        emojis: (client, args) => this.#sas.emojis(client, args),
        confirm: (client, args) => this.#sas.confirm(client, args),
        crossSign: secrets.crossSign,
        hasSecrets: secrets.hasSecrets,
        trusts: secrets.trusts,
        askForKeys: async (client) => {
            secrets.askForKeys(client);
            await this.#reading.tryAgain();
        },
    };

    /** Obeys a command. Whatever it returns goes into JSON. */
    async do(command, args) {
        return await this.#commands[command](this.#client, args);
    }

    async #login({ url, user, password, deviceID }) {
        const session = await createClient({ baseUrl: url }).loginRequest({
            type: "m.login.password", identifier: { type: "m.id.user", user }, password, device_id: deviceID,
        });
        this.#account = { baseUrl: url, userId: session.user_id, deviceId: session.device_id, accessToken: session.access_token };
        return session.access_token;
    }

    async #online() {
        this.#store = this.#disk.store();
        this.#transport = new Transport();
        const client = createClient({
            ...this.#account, store: this.#store, fetchFn: this.#transport.fetch, verificationMethods: secrets.methods,
        });
        await this.#store.startup();
        await this.#disk.openKeys(client);
        this.#sas.follow(client);
        this.#post.follow(client);
        this.#reading.follow(client);
        const filter = new Filter(this.#account.userId);
        filter.setTimelineLimit(timeline);
        await client.startClient({ filter, initialSyncLimit: timeline });
        this.#client = client;
        await until(() => client.getSyncState() === SyncState.Syncing, () => `the client is ${client.getSyncState()}`);
    }

    async #offline() {
        const client = this.#client;
        this.#client = undefined;
        this.#reading.rest();
        await this.#transport.endSyncs();
        await this.#store.save(true);
        client.stopClient();
        await this.#store.destroy();
    }

    async #logout(client) {
        this.#client = undefined;
        this.#reading.rest();
        await this.#transport.endSyncs();
        await client.logout(true);
    }
}

const timeline = 1000; // events of a room in a /sync: more than a test sends while a device is offline
